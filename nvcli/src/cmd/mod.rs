//! The commands, one module each.

pub(crate) mod completions;
pub(crate) mod doctor;
