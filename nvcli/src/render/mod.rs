//! How records and lists are shown.

pub(crate) mod alike;
pub(crate) mod flows;
pub(crate) mod gather;
pub(crate) mod order;
pub(crate) mod progress;
pub(crate) mod table;
pub(crate) mod text;
