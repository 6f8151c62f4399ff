//! The headers of a frame.
