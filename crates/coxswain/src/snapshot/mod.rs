//! `coxswain snapshot`: backups of the embedded state store, by hand and by schedule.
//!
//! A server that runs takes them itself, asked through a socket (`control.rs`); of a server that does not run they are taken from its
//! files. What is in a snapshot, and how a store is made of one, is the store's business.

mod control;
mod folder;
mod schedule;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

pub use control::serve;
pub use schedule::{Plan, ScheduleArgs, keep};

use self::folder::{Folder, Found};
use crate::{datastore, files};

/// How far revisions jump at a restore, as upstream's guide to restoring etcd has it: more than any cluster makes between a
/// snapshot and the loss of its store.
const MARGIN: u64 = 1_000_000_000;
/// Begins the names of snapshots that somebody asked for.
const BY_HAND: &str = "on-demand";

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Back up the state of a server, whether it runs or not
    Save(SaveArgs),
    /// Put a snapshot in the place of a stopped server's state; the old state is kept beside it
    Restore(RestoreArgs),
    /// Show the snapshots, and whether each is whole
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Remove snapshots by name
    Delete(DeleteArgs),
    /// Remove all but the newest snapshots of a name
    Prune(PruneArgs),
}

#[derive(Args)]
struct Place {
    /// Where the server keeps its state
    #[arg(long, default_value = "/var/lib/coxswain")]
    data_dir: PathBuf,
    /// Where the snapshots are [default: <data-dir>/snapshots]
    #[arg(long, visible_alias = "snapshot-dir", alias = "etcd-snapshot-dir", value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Args)]
pub struct SaveArgs {
    #[command(flatten)]
    place: Place,
    /// What the snapshot's name begins with; the time follows
    #[arg(long, default_value = BY_HAND)]
    name: String,
}

#[derive(Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    place: Place,
    /// Path of a snapshot, or its name
    snapshot: PathBuf,
    /// How far revisions jump, so that none that a client has seen is used again
    #[arg(long, default_value_t = MARGIN, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    bump_revision: u64,
}

#[derive(Args)]
pub struct ListArgs {
    #[command(flatten)]
    place: Place,
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    place: Place,
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Args)]
pub struct PruneArgs {
    #[command(flatten)]
    place: Place,
    /// What the names begin with
    #[arg(long, default_value = schedule::SCHEDULED)]
    name: String,
    /// How many to keep
    #[arg(long, visible_alias = "snapshot-retention", alias = "etcd-snapshot-retention", default_value_t = schedule::RETENTION)]
    retention: usize,
}

pub fn run(command: SnapshotCommand) -> ExitCode {
    let done = match command {
        SnapshotCommand::Save(args) => save(args),
        SnapshotCommand::Restore(args) => restore(args),
        SnapshotCommand::List(args) => list(args),
        SnapshotCommand::Delete(args) => delete(args),
        SnapshotCommand::Prune(args) => prune(args),
    };
    done.unwrap_or_else(|error| crate::fail(&error))
}

impl Place {
    fn data_dir(&self) -> Result<PathBuf> {
        std::path::absolute(&self.data_dir).context("--data-dir")
    }

    fn folder(&self) -> Result<Folder> {
        let dir = self.dir.clone().map_or_else(
            || Ok(Folder::default_of(&self.data_dir()?)),
            |dir| std::path::absolute(dir).context("--dir"),
        )?;
        Ok(Folder(dir))
    }
}

impl Folder {
    /// Where a server with this data folder has its snapshots unless told otherwise.
    pub fn default_of(data_dir: &std::path::Path) -> PathBuf {
        data_dir.join("snapshots")
    }
}

fn save(args: SaveArgs) -> Result<ExitCode> {
    folder::check_name(&args.name)?;
    let (data_dir, folder) = (args.place.data_dir()?, args.place.folder()?);
    let (path, revision, keys) = match control::ask(&data_dir, &folder, &args.name)? {
        Some(saved) => (saved.path, saved.revision, saved.keys),
        None => {
            let store = datastore::embedded_dir(&data_dir);
            if !store.is_dir() {
                bail!("no server keeps its state in {}", data_dir.display());
            }
            let _lock = files::lock(&data_dir)?;
            let path = folder.next_path(&args.name)?;
            let taken = store::snapshot::save(&store, &path)?;
            (path, taken.revision, taken.keys)
        }
    };
    println!("{} (revision {revision}, {keys} keys)", path.display());
    Ok(ExitCode::SUCCESS)
}

fn restore(args: RestoreArgs) -> Result<ExitCode> {
    let data_dir = args.place.data_dir()?;
    let path = match args.snapshot.try_exists() {
        Ok(true) => args.snapshot,
        _ => args.place.folder()?.named(&args.snapshot.to_string_lossy())?,
    };
    files::make_dir(&data_dir)?;
    let _lock = files::lock(&data_dir).context("a running server's state cannot be replaced; stop it first")?;
    let restored = store::snapshot::restore(&path, &datastore::embedded_dir(&data_dir), args.bump_revision)?;
    let keys = restored.snapshot.keys;
    println!("{keys} keys as of revision {}; the server goes on at {}", restored.snapshot.revision, restored.revision);
    if let Some(kept) = restored.kept {
        println!("The old state is in {}; remove it when it is not needed any more", kept.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: ListArgs) -> Result<ExitCode> {
    let found = args.place.folder()?.list()?;
    if args.output == Output::Json {
        let rows: Vec<_> = found.iter().map(row_json).collect();
        println!("{:#}", json!(rows));
    } else {
        println!("{:<44} {:>12} {:>8} {:>10}  {:<20}  STATE", "NAME", "REVISION", "KEYS", "SIZE", "TAKEN");
        found.iter().for_each(|snapshot| println!("{}", row_text(snapshot)));
    }
    // For scripts that look after backups.
    Ok(if found.iter().any(|snapshot| snapshot.summary.is_err()) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn row_json(found: &Found) -> serde_json::Value {
    match &found.summary {
        Ok(summary) => json!({
            "name": found.name, "revision": summary.revision, "keys": summary.keys, "bytes": summary.bytes,
            "fileBytes": found.file_bytes, "taken": folder::time(summary.taken).to_string(), "state": "ok",
        }),
        Err(error) => json!({
            "name": found.name, "fileBytes": found.file_bytes, "state": "damaged", "reason": error.to_string(),
        }),
    }
}

fn row_text(found: &Found) -> String {
    let (name, size) = (&found.name, format!("{:.1} MB", found.file_bytes as f64 / 1e6));
    match &found.summary {
        Ok(summary) => {
            let taken = folder::time(summary.taken).strftime("%Y-%m-%dT%H:%M:%SZ");
            format!("{name:<44} {:>12} {:>8} {size:>10}  {taken:<20}  ok", summary.revision, summary.keys)
        }
        Err(error) => format!("{name:<44} {:>12} {:>8} {size:>10}  {:<20}  damaged: {error}", "-", "-", "-"),
    }
}

fn delete(args: DeleteArgs) -> Result<ExitCode> {
    let folder = args.place.folder()?;
    // All are looked up first: a slip of the pen in one name deletes nothing.
    let paths = args.names.iter().map(|name| folder.named(name)).collect::<Result<Vec<_>>>()?;
    for path in paths {
        std::fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
        println!("{} deleted", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn prune(args: PruneArgs) -> Result<ExitCode> {
    for path in args.place.folder()?.prune(&args.name, args.retention)? {
        println!("{} deleted", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
