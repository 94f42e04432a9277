//! `cargo xtask protobuf [--check]`: writes `crates/apimachinery/data/protobuf.txt`, the field numbers of upstream's messages.
//!
//! The source is the crate `k8s-pb`, of which only the attributes of its structures are read; it is in our lock file but never
//! compiled. Which fields there are comes from `schema.txt`. A message that Go embeds (`VolumeSource` in `Volume`) is a field of its own in
//! protobuf and none in JSON: its fields are written as `emptyDir=2.2`, the path of numbers that leads to them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

const CRATE: &str = "k8s-pb";

/// One field of a message as `k8s-pb` has it.
#[derive(Clone, Debug)]
struct Field {
    /// Lower case, no underscores.
    name: String,
    tag: u32,
    /// The last segment of a message's type.
    message: Option<String>,
}

/// By [`key`].
type Messages = HashMap<String, Vec<Field>>;

/// A message's name without its capitals: the crate writes `HttpGetAction` where the schema has `HTTPGetAction`.
fn key(definition: &str) -> String {
    definition.to_lowercase()
}

pub fn run(args: &[String]) -> Result<()> {
    let data = crate::root().join("crates/apimachinery/data");
    let schema = schema_fields(&fs::read_to_string(data.join("schema.txt"))?);
    let generated = generate(&schema, &messages(&source()?.join("src"))?);
    let target = data.join("protobuf.txt");
    match args {
        [] => fs::write(&target, generated).with_context(|| target.display().to_string()),
        [flag] if flag == "--check" => {
            ensure!(
                fs::read_to_string(&target)? == generated,
                "{} is stale: run `cargo xtask protobuf`",
                target.display()
            );
            Ok(())
        }
        _ => bail!("usage: cargo xtask protobuf [--check]"),
    }
}

/// Where Cargo keeps the crate's source.
fn source() -> Result<PathBuf> {
    let output = Command::new("cargo").args(["metadata", "--format-version", "1", "--locked"]).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let package =
        packages.iter().find(|p| p["name"] == CRATE).with_context(|| format!("{CRATE} is not in the lock file"))?;
    let manifest = package["manifest_path"].as_str().context("no manifest path")?;
    Path::new(manifest).parent().map(Path::to_owned).context("a manifest lies in a folder")
}

/// JSON field names by definition.
fn schema_fields(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut package = "";
    let mut current = String::new();
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix("package ") {
            package = name;
        } else if let Some(field) = line.strip_prefix(' ') {
            let name = field.split([' ', '!']).next().unwrap_or_default();
            out.entry(current.clone()).or_default().push(name.to_owned());
        } else {
            current = format!("{package}.{}", line.split(' ').next().unwrap_or_default());
        }
    }
    out
}

/// All messages of the crate, by definition name.
fn messages(src: &Path) -> Result<Messages> {
    let mut out = Messages::new();
    let mut folders = vec![src.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let module = path.parent().unwrap_or(src).strip_prefix(src)?;
                let module: Vec<String> = module
                    .iter()
                    .map(|part| {
                        part.to_string_lossy()
                            .replace("apiextensions_apiserver", "apiextensions-apiserver")
                            .replace("kube_aggregator", "kube-aggregator")
                    })
                    .collect();
                read_messages(&fs::read_to_string(&path)?, &format!("io.k8s.{}", module.join(".")), &mut out);
            }
        }
    }
    Ok(out)
}

fn read_messages(text: &str, package: &str, out: &mut Messages) {
    let mut current: Option<String> = None;
    let mut attribute = String::new();
    let mut inside = false;
    let mut pending: Option<(u32, bool)> = None;
    let mut lines = text.lines().map(str::trim).filter(|l| !l.starts_with("///")).peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{', ';']).next().unwrap_or_default();
            let key = key(&format!("{package}.{name}"));
            out.insert(key.clone(), Vec::new());
            current = Some(key);
        } else if line.starts_with("#[prost(") || inside {
            attribute.push_str(line);
            inside = !line.ends_with(")]");
            if !inside {
                let tag =
                    attribute.split("tag = \"").nth(1).and_then(|t| t.split('"').next()).and_then(|t| t.parse().ok());
                pending = tag.map(|tag| (tag, attribute.starts_with("#[prost(message, optional")));
                attribute.clear();
            }
        } else if let (Some((tag, message)), Some(rest)) = (pending, line.strip_prefix("pub ")) {
            let (name, ty) = rest.split_once(':').unwrap_or((rest, ""));
            let ty = if ty.trim().is_empty() { lines.peek().copied().unwrap_or_default() } else { ty };
            let last = ty.trim_end_matches([',', '>', ' ']).rsplit("::").next().unwrap_or_default();
            let last = last.rsplit('<').next().unwrap_or_default().to_owned();
            let field = Field {
                name: name.trim_start_matches("r#").replace('_', "").to_lowercase(),
                tag,
                message: message.then_some(last),
            };
            if let Some(fields) = current.as_ref().and_then(|key| out.get_mut(key)) {
                fields.push(field);
            }
            pending = None;
        }
    }
}

/// Types without a message are named at the end: what clients send of them is read as empty, so that list must hold nothing but
/// types that are newer than the crate.
fn generate(schema: &BTreeMap<String, Vec<String>>, messages: &Messages) -> String {
    let mut missing = Vec::new();
    let mut out = String::from(
        "# Generated by `cargo xtask protobuf` from the field numbers that the crate k8s-pb publishes. Do not edit.\n\
         # DEFINITION FIELD=NUMBER ...; a path of numbers leads through messages that JSON does not show.\n",
    );
    for (definition, fields) in schema {
        let package = definition.rsplit_once('.').map_or("", |(p, _)| p);
        let Some(message) = messages.get(&key(definition)) else {
            let in_package = |other: &String| other.starts_with(&format!("{}.", key(package)));
            // A package that the crate lacks altogether has no protobuf form.
            if messages.keys().any(in_package) {
                missing.push(definition.as_str());
            }
            continue;
        };
        let mut line = String::new();
        flatten(message, fields, package, messages, "", 0, &mut line);
        if !line.is_empty() {
            let _ = writeln!(out, "{definition}{line}");
        }
    }
    let _ = writeln!(out, "# The crate knows nothing of:");
    for definition in missing {
        let _ = writeln!(out, "#   {definition}");
    }
    out
}

fn flatten(
    message: &[Field],
    json: &[String],
    package: &str,
    messages: &Messages,
    prefix: &str,
    depth: usize,
    out: &mut String,
) {
    for field in message {
        let path = format!("{prefix}{}", field.tag);
        if let Some(name) = json.iter().find(|j| j.replace(['-', '$'], "").to_lowercase() == field.name) {
            let _ = write!(out, " {name}={path}");
        } else if let Some(ty) = &field.message
            && depth < 3
            && let Some(inner) = messages.get(&key(&format!("{package}.{ty}")))
        {
            flatten(inner, json, package, messages, &format!("{path}."), depth + 1, out);
        }
    }
}
