//! `cargo xtask layers`: the arrows between crates go one way, and files stay small enough to read.
//!
//! The rules are those of ARCHITECTURE.md; what a crate may use is written here once, and Cargo's manifests are held against it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Each of our crates and which of ours it may depend on.
const MAY_USE: [(&str, &[&str]); 17] = [
    ("apimachinery", &[]),
    ("cel", &["apimachinery"]),
    ("store", &[]),
    ("streaming", &[]),
    ("serving", &[]),
    ("cri", &[]),
    ("client", &[]),
    ("apiserver", &["apimachinery", "store", "streaming", "serving"]),
    ("controllers", &["client", "apimachinery"]),
    ("scheduler", &["client", "apimachinery"]),
    ("kubelet", &["client", "cri", "streaming", "serving", "apimachinery"]),
    ("network", &["client"]),
    (
        "coxswain",
        &[
            "apimachinery",
            "store",
            "streaming",
            "serving",
            "apiserver",
            "client",
            "controllers",
            "scheduler",
            "kubelet",
            "cri",
            "network",
        ],
    ),
    ("bench", &[]),
    ("conformance", &[]),
    ("histories", &[]),
    ("xtask", &[]),
];

/// Crates that are pure must not be able to reach the world.
const PURE: [(&str, &[&str]); 2] = [("apimachinery", WORLDLY), ("cel", WORLDLY)];
const WORLDLY: &[&str] = &["tokio", "hyper", "rand", "nix", "libc", "rustls", "kube"];

/// Lines in a source file before it has to be split by meaning. Tests in a file of their own count too.
const MAX_LINES: usize = 700;

pub fn run() -> Result<()> {
    let root = crate::root();
    let mut problems = Vec::new();
    let ours: Vec<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    for (name, allowed) in MAY_USE {
        let dir = if name == "xtask" { root.join("xtask") } else { root.join("crates").join(name) };
        let used = dependencies(&dir.join("Cargo.toml"))?;
        for dependency in used.iter().filter(|d| ours.contains(&d.as_str()) && !allowed.contains(&d.as_str())) {
            problems.push(format!("{name} must not use {dependency}"));
        }
        let forbidden = PURE.iter().find(|(pure, _)| *pure == name).map_or(&[][..], |(_, list)| *list);
        for dependency in used.iter().filter(|d| forbidden.contains(&d.as_str())) {
            problems.push(format!("{name} is pure and must not use {dependency}"));
        }
        for file in sources(&dir.join("src"))? {
            let lines = fs::read_to_string(&file)?.lines().count();
            if lines > MAX_LINES {
                let shown = file.strip_prefix(&root).unwrap_or(&file).display();
                problems.push(format!("{shown} has {lines} lines, split it by meaning"));
            }
        }
    }
    for entry in fs::read_dir(root.join("crates"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !ours.contains(&name.as_str()) {
            problems.push(format!("crate {name} has no rule in xtask/src/layers.rs"));
        }
    }
    if problems.is_empty() {
        println!("layers: {} crates keep the rules", ours.len());
        return Ok(());
    }
    bail!("layering:\n  {}", problems.join("\n  "))
}

/// Names under `[dependencies]`; development dependencies may point anywhere.
fn dependencies(manifest: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(manifest).with_context(|| manifest.display().to_string())?;
    let mut inside = false;
    let mut names = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]" || line.starts_with("[target.") && line.ends_with(".dependencies]");
        } else if inside && let Some((name, _)) = line.split_once(['.', '=', ' ']) {
            names.push(name.trim().to_owned());
        }
    }
    Ok(names)
}

fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}
