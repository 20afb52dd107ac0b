//! The only module that names aya: programs, links, maps and pins.

pub(crate) mod load;
