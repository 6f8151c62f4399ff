//! See the files beside this folder.
