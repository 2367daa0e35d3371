//! What bad input gets: one clear line, a non-zero exit, nothing touched.
