//! A disk in memory that loses what was not synced, tears writes, and fails when told to.
//!
//! It is as unhelpful as a real one may be: unsynced pages reach the platter in any combination, a failed sync forgets
//! which pages were dirty, names become durable in order but only when the directory is synced.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;

use crate::disk::{Disk, DiskFile};

const PAGE: usize = 32;

#[derive(Clone, Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Inode {
    fn touch(&mut self, from: usize, to: usize) {
        self.dirty.extend(from / PAGE..to.div_ceil(PAGE));
    }

    fn write_back(&mut self, page: usize) {
        let end = ((page + 1) * PAGE).min(self.current.len());
        let start = (page * PAGE).min(end);
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&self.current[start..end]);
    }
}

#[derive(Clone)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
}

#[derive(Default)]
struct Platter {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: VecDeque<NameChange>,
    /// One per operation that changes something: whether it fails. Empty: none does.
    faults: VecDeque<Option<io::ErrorKind>>,
    /// The same for reads.
    read_faults: VecDeque<Option<io::ErrorKind>>,
    /// How many operations have changed something, or tried to.
    operations: usize,
    /// Off from this one on.
    crash_at: Option<usize>,
    off: bool,
    syncs: usize,
    sync_time: Duration,
}

impl Platter {
    fn check(&mut self) -> io::Result<()> {
        self.off |= self.crash_at.is_some_and(|at| self.operations >= at);
        self.operations += 1;
        if self.off {
            return Err(io::Error::other("powered off"));
        }
        self.faults.pop_front().flatten().map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn change_name(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.pending_names.push_back(change);
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Link(name, inode) => _ = names.insert(name.clone(), *inode),
        NameChange::Unlink(name) => _ = names.remove(name),
    }
}

#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Platter>>);

impl SimDisk {
    pub(crate) fn with_files(files: BTreeMap<String, Vec<u8>>) -> Self {
        let disk = SimDisk::default();
        let mut platter = disk.0.lock();
        for (name, content) in files {
            let inode = platter.inodes.len();
            platter.inodes.push(Inode { current: content.clone(), durable: content, dirty: BTreeSet::new() });
            platter.names.insert(name.clone(), inode);
            platter.durable_names.insert(name, inode);
        }
        drop(platter);
        disk
    }

    /// The process dies: what was written stays. Later operations of the old handles fail.
    pub(crate) fn kill(&self) -> SimDisk {
        self.0.lock().off = true;
        SimDisk::with_files(self.files())
    }

    /// The power goes: what was not synced stays or not.
    pub(crate) fn power_off(&self, rng: &mut impl Rng) -> SimDisk {
        let mut platter = self.0.lock();
        platter.off = true;
        for _ in 0..rng.random_range(0..=platter.pending_names.len()) {
            let change = platter.pending_names.pop_front().unwrap();
            apply(&mut platter.durable_names, &change);
        }
        let mut files = BTreeMap::new();
        for (name, inode) in platter.durable_names.clone() {
            let inode = &mut platter.inodes[inode];
            if inode.current.len() < inode.durable.len() && rng.random() {
                inode.durable.truncate(inode.current.len());
            }
            for page in inode.dirty.clone() {
                if rng.random() {
                    inode.write_back(page);
                }
            }
            files.insert(name, inode.durable.clone());
        }
        SimDisk::with_files(files)
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let platter = self.0.lock();
        platter.names.iter().map(|(name, inode)| (name.clone(), platter.inodes[*inode].current.clone())).collect()
    }

    pub(crate) fn total_bytes(&self) -> usize {
        self.files().values().map(Vec::len).sum()
    }

    pub(crate) fn set_faults(&self, faults: impl IntoIterator<Item = Option<io::ErrorKind>>) {
        self.0.lock().faults = faults.into_iter().collect();
    }

    pub(crate) fn set_read_faults(&self, faults: impl IntoIterator<Item = Option<io::ErrorKind>>) {
        self.0.lock().read_faults = faults.into_iter().collect();
    }

    /// The machine stops after so many more operations that change something; the next one does nothing.
    pub(crate) fn crash_after(&self, operations: usize) {
        let mut platter = self.0.lock();
        platter.crash_at = Some(platter.operations + operations);
    }

    /// How many operations have changed something, or tried to.
    pub(crate) fn operations(&self) -> usize {
        self.0.lock().operations
    }

    fn check_read(&self) -> io::Result<()> {
        self.0.lock().read_faults.pop_front().flatten().map_or(Ok(()), |kind| Err(kind.into()))
    }

    pub(crate) fn set_sync_time(&self, time: Duration) {
        self.0.lock().sync_time = time;
    }

    pub(crate) fn syncs(&self) -> usize {
        self.0.lock().syncs
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        self.0.lock().names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/sim").join(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.check_read()?;
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        self.check_read()?;
        let inode = self.inode(name)?;
        let content = Cursor::new(self.0.lock().inodes[inode].current.clone());
        Ok(Box::new(SimReader { disk: self.clone(), content }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut platter = self.0.lock();
        platter.check()?;
        let inode = platter.inodes.len();
        platter.inodes.push(Inode::default());
        platter.change_name(NameChange::Link(name.to_owned(), inode));
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SimFile { inode: self.inode(name)?, disk: self.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let inode = self.inode(from)?;
        let mut platter = self.0.lock();
        platter.check()?;
        // One step, as the journal has it: never both, never none.
        platter.change_name(NameChange::Link(to.to_owned(), inode));
        platter.change_name(NameChange::Unlink(from.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.check()?;
        platter.change_name(NameChange::Unlink(name.to_owned()));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.check()?;
        platter.durable_names = platter.names.clone();
        platter.pending_names.clear();
        Ok(())
    }
}

struct SimReader {
    disk: SimDisk,
    content: Cursor<Vec<u8>>,
}

impl Read for SimReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.disk.check_read()?;
        self.content.read(buffer)
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl DiskFile for SimFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut platter = self.disk.0.lock();
        let checked = platter.check();
        if platter.off {
            return checked;
        }
        // A write that fails has written some.
        let bytes = if checked.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        let inode = &mut platter.inodes[self.inode];
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if inode.current.len() < end {
            inode.current.resize(end, 0);
        }
        inode.current[start..end].copy_from_slice(bytes);
        inode.touch(start, end);
        checked
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut platter = self.disk.0.lock();
        platter.check()?;
        let inode = &mut platter.inodes[self.inode];
        inode.current.resize(len as usize, 0);
        inode.dirty.retain(|page| page * PAGE < len as usize);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let time = self.disk.0.lock().sync_time;
        std::thread::sleep(time);
        let mut platter = self.disk.0.lock();
        let checked = platter.check();
        if platter.off {
            return checked;
        }
        platter.syncs += 1;
        let inode = &mut platter.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        if checked.is_ok() {
            let len = inode.current.len();
            inode.durable.resize(len, 0);
            dirty.into_iter().for_each(|page| inode.write_back(page));
        }
        checked
    }
}
