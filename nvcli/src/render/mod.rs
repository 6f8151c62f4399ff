//! How records and lists are shown.

pub(crate) mod table;
