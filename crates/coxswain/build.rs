//! Tells the binary which commit it was built from. Without git (a source archive), it says so.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=../../.git/HEAD");
    println!("cargo::rerun-if-changed=../../.git/refs/heads");
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    // The commit's date, not the clock's: the same source makes the same binary.
    let date = git(&["show", "-s", "--format=%cd", "--date=format:%Y-%m-%dT%H:%M:%SZ", "HEAD"]);
    println!("cargo::rustc-env=COXSWAIN_COMMIT={commit}");
    println!("cargo::rustc-env=COXSWAIN_BUILD_DATE={}", date.unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned()));
}
