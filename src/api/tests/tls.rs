//! https.
