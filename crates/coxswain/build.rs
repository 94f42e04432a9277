//! Builds the pause program of pod sandboxes, and tells the binary which commit it was built from.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    pause();
    version();
}

/// The pause program, for the machine that the binary is for.
fn pause() {
    const SOURCE: &str = "pause/pause.rs";
    println!("cargo::rerun-if-changed={SOURCE}");
    let variable = |name: &str| std::env::var_os(name);
    let out = PathBuf::from(variable("OUT_DIR").expect("cargo sets OUT_DIR")).join("pause");
    let mut rustc = Command::new(variable("RUSTC").expect("cargo sets RUSTC"));
    rustc.args(["--crate-name=pause", "--crate-type=bin", "--edition=2024", "--target"]);
    rustc.arg(variable("TARGET").expect("cargo sets TARGET"));
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Crelocation-model=static"]);
    rustc.args(["-Cdefault-linker-libraries=no", "-Ctarget-feature=+crt-static"]);
    // One small file: no gaps between segments, no notes.
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-Wl,-z,noseparate-code", "-Wl,--build-id=none"] {
        rustc.arg(format!("-Clink-arg={argument}"));
    }
    if let Some(linker) = variable("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={}", linker.to_string_lossy()));
    }
    let status = rustc.arg("-o").arg(&out).arg(SOURCE).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot build {SOURCE}");
}

/// The commit. Without git (a source archive), it says so.
fn version() {
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
