//! Kernel settings.

use std::path::Path;

use crate::{Error, Result};

/// Sets a setting, by its path below `/proc/sys`, in the network namespace of the calling thread. Writes only what differs.
pub fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    if read_sysctl(name).is_some_and(|present| present == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(Error::file("writing", &path))
}

/// A setting's value; none if there is no such setting.
pub fn read_sysctl(name: &str) -> Option<String> {
    std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned())
}
