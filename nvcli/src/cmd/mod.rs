//! The commands, one module each.

pub(crate) mod agent;
pub(crate) mod attach;
pub(crate) mod capture;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod detach;
pub(crate) mod doctor;
pub(crate) mod dump;
pub(crate) mod flows;
pub(crate) mod list;
pub(crate) mod man;
pub(crate) mod repair;
pub(crate) mod status;
