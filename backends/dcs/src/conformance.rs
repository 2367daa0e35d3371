//! The suite every backend must pass (DCS-T1 … DCS-T14).
