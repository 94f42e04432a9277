//! The candidates behind one interface: a batch of puts, durable when the call returns, and all entries in order.

use std::path::Path;

/// Which engine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Redb,
    Fjall,
    Heed,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Ours, Kind::Redb, Kind::Fjall, Kind::Heed];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Ours => "ours",
            Kind::Redb => "redb",
            Kind::Fjall => "fjall",
            Kind::Heed => "heed",
        }
    }

    /// None for ours, which has its own interface.
    pub fn open(self, directory: &Path) -> Box<dyn Engine> {
        match self {
            Kind::Ours => unreachable!("the store is used as it is"),
            Kind::Redb => Box::new(Redb::open(directory)),
            Kind::Fjall => Box::new(Fjall::open(directory)),
            Kind::Heed => Box::new(Heed::open(directory)),
        }
    }
}

pub type Row = (String, Vec<u8>);

pub trait Engine: Send {
    /// Durable on return.
    fn put(&mut self, rows: &[Row]);
    /// In key order.
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8]));
}

struct Redb(redb::Database);

const TABLE: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("objects");

impl Redb {
    fn open(directory: &Path) -> Self {
        Redb(redb::Database::create(directory.join("redb")).expect("redb opens"))
    }
}

impl Engine for Redb {
    fn put(&mut self, rows: &[Row]) {
        let transaction = self.0.begin_write().expect("redb begins");
        {
            let mut table = transaction.open_table(TABLE).expect("redb opens the table");
            for (key, value) in rows {
                table.insert(key.as_str(), value.as_slice()).expect("redb inserts");
            }
        }
        // `Durability::Immediate` is the default.
        transaction.commit().expect("redb commits");
    }

    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        use redb::{ReadableDatabase as _, ReadableTable as _};
        let transaction = self.0.begin_read().expect("redb reads");
        let table = transaction.open_table(TABLE).expect("redb opens the table");
        for row in table.iter().expect("redb iterates") {
            let (key, value) = row.expect("redb reads");
            visit(key.value(), value.value());
        }
    }
}

struct Fjall {
    database: fjall::Database,
    objects: fjall::Keyspace,
}

impl Fjall {
    fn open(directory: &Path) -> Self {
        let database = fjall::Database::builder(directory.join("fjall")).open().expect("fjall opens");
        let objects =
            database.keyspace("objects", fjall::KeyspaceCreateOptions::default).expect("fjall opens the keyspace");
        Fjall { database, objects }
    }
}

impl Engine for Fjall {
    fn put(&mut self, rows: &[Row]) {
        let mut batch = self.database.batch().durability(Some(fjall::PersistMode::SyncData));
        for (key, value) in rows {
            batch.insert(&self.objects, key.as_str(), value.as_slice());
        }
        batch.commit().expect("fjall commits");
    }

    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        for row in self.objects.iter() {
            let (key, value) = row.into_inner().expect("fjall reads");
            visit(std::str::from_utf8(&key).expect("our keys are text"), &value);
        }
    }
}

struct Heed {
    env: heed::Env,
    objects: heed::Database<heed::types::Str, heed::types::Bytes>,
}

impl Heed {
    fn open(directory: &Path) -> Self {
        // SAFETY: nobody else has these files open.
        let env = unsafe { heed::EnvOpenOptions::new().map_size(8 << 30).open(directory) }.expect("LMDB opens");
        let mut transaction = env.write_txn().expect("LMDB begins");
        let objects = env.create_database(&mut transaction, None).expect("LMDB opens the database");
        transaction.commit().expect("LMDB commits");
        Heed { env, objects }
    }
}

impl Engine for Heed {
    fn put(&mut self, rows: &[Row]) {
        let mut transaction = self.env.write_txn().expect("LMDB begins");
        for (key, value) in rows {
            self.objects.put(&mut transaction, key, value).expect("LMDB puts");
        }
        transaction.commit().expect("LMDB commits");
    }

    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        let transaction = self.env.read_txn().expect("LMDB reads");
        for row in self.objects.iter(&transaction).expect("LMDB iterates") {
            let (key, value) = row.expect("LMDB reads");
            visit(key, value);
        }
    }
}
