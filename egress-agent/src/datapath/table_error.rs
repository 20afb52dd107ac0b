//! What can go wrong with a map.

use aya::maps::MapError;

/// A map could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} an entry of the BPF map {map}; `egressd status` shows how full it is")]
pub struct TableError {
    /// Name of the map.
    pub map: &'static str,
    /// read, write or remove.
    pub action: &'static str,
    /// Why.
    #[source]
    pub source: Box<MapError>,
}

impl TableError {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<i32> {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(current) = error {
            if let Some(io) = current.downcast_ref::<std::io::Error>() {
                return io.raw_os_error();
            }
            error = current.source();
        }
        None
    }
}

pub(super) fn failed(map: &'static str, action: &'static str) -> impl Fn(MapError) -> TableError {
    move |source| TableError { map, action, source: Box::new(source) }
}

pub(super) fn absent<T>(found: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}
