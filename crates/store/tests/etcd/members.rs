//! Three members, of which any one may die.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use store::{Error, Outcome, Range};

use crate::cluster::Cluster;
use crate::{Text, TextStore, next, open, put, txn};

const WRITERS: usize = 8;

/// What a writer knows of its key at the end.
#[derive(Debug, Default)]
struct Written {
    /// Acknowledged numbers with their revisions.
    acknowledged: Vec<(u64, u64)>,
    /// Numbers that may have been written.
    uncertain: Vec<u64>,
}

async fn write(store: TextStore, key: String, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written::default();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        match store
            .commit(txn(&[], vec![put(&key, &number.to_string()), put(&format!("{key}/twin"), &number.to_string())]))
            .await
        {
            Ok(Outcome::Committed { revision, .. }) => {
                assert_eq!(store.get(&key).unwrap().value.text(), number.to_string(), "its own write is seen");
                written.acknowledged.push((number, revision));
            }
            Ok(Outcome::Failed { .. }) => panic!("nothing is compared"),
            Err(Error::Uncertain { .. }) => written.uncertain.push(number),
            Err(Error::Unavailable { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_die_under_load() {
    const KILLS: usize = 4;
    let mut cluster = Cluster::start(3, &[]);
    let stores = [open(cluster.config()).await, open(cluster.config()).await];
    let start = stores[0].revision();
    let mut watchers = stores.each_ref().map(|store| store.watch("/", start).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(stores[writer % 2].clone(), format!("/{writer}"), stop.clone())))
        .collect();
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let leader = cluster.leader();
        cluster.kill(leader);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        cluster.launch(leader);
        cluster.wait_healthy(leader);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::SeqCst);
    let mut written = Vec::new();
    for writer in writers {
        written.push(tokio::time::timeout(Duration::from_secs(30), writer).await.unwrap().unwrap());
    }
    let acknowledged: usize = written.iter().map(|written| written.acknowledged.len()).sum();
    let uncertain: usize = written.iter().map(|written| written.uncertain.len()).sum();
    println!("{acknowledged} acknowledged, {uncertain} uncertain, {KILLS} leaders killed");
    assert!(acknowledged > 100);
    for store in &stores {
        store.barrier().await.unwrap();
    }
    let newest = stores.iter().map(|store| store.revision()).max().unwrap();
    for (store, watcher) in stores.iter().zip(&mut watchers) {
        while store.revision() < newest {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        check(store, watcher, start, &written).await;
    }
    let fresh = open(cluster.config()).await;
    let all = |store: &TextStore| -> Vec<(String, u64)> {
        let listing = store.range(&Range::prefix("/")).unwrap();
        listing.entries.iter().map(|entry| (entry.key.to_string(), entry.mod_revision)).collect()
    };
    assert_eq!(all(&fresh), all(&stores[0]), "the index is what the cluster has");
    assert_eq!(all(&fresh), all(&stores[1]));
}

/// Every event once, in order, transactions whole, nothing acknowledged missing.
async fn check(store: &TextStore, watcher: &mut store::Watcher<Text>, start: u64, written: &[Written]) {
    let mut events = Vec::new();
    while watcher.progress() < store.revision() {
        events.extend(next(watcher, 1).await);
    }
    let mut revision = start;
    for transaction in events.chunk_by(|a, b| a.revision == b.revision) {
        revision += 1;
        assert_eq!(transaction[0].revision, revision, "each revision once, without gap");
        let [first, twin] = transaction else { panic!("{} events of one transaction", transaction.len()) };
        assert_eq!(format!("{}/twin", first.key()), twin.key());
        assert_eq!(first.entry().value.text(), twin.entry().value.text());
    }
    for (writer, written) in written.iter().enumerate() {
        let key = format!("/{writer}");
        let told: Vec<(u64, u64)> = events
            .iter()
            .filter(|event| event.key() == key)
            .map(|event| (event.entry().value.text().parse().unwrap(), event.revision))
            .collect();
        let (mut certain, doubtful): (Vec<_>, Vec<_>) =
            told.iter().copied().partition(|(number, _)| !written.uncertain.contains(number));
        certain.sort_unstable();
        assert_eq!(certain, written.acknowledged, "writer {writer}");
        let mut once = doubtful.clone();
        once.dedup_by_key(|(number, _)| *number);
        assert_eq!(once.len(), doubtful.len(), "nothing is done twice");
    }
}
