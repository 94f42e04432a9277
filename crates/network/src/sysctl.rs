//! Kernel settings.

use std::path::Path;

use crate::{Error, Result};

/// Sets a setting, by its path below `/proc/sys`, in the network namespace of the calling thread. Writes only what differs.
pub fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    if std::fs::read_to_string(&path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(Error::file("writing", &path))
}
