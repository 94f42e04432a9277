//! One member that dies, a wire that breaks, history that is gone, a cluster that was restored.

use std::time::Duration;

use store::etcd::{Config, Keys};
use store::{Error, Expect, Outcome};

use crate::cluster::{Cluster, Wire};
use crate::{commit, next, open, put, told, txn, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_its_member() {
    let mut cluster = Cluster::start(1, &[]);
    let (store, other) = (open(cluster.config()).await, open(cluster.config()).await);
    let mut watcher = store.watch("/", store.revision()).unwrap();
    let mut expected = Vec::new();
    for round in 0..3 {
        for number in 0..20 {
            let (a, b) = (format!("/a/{number}"), format!("/b/{number}"));
            let revision = commit(&other, vec![put(&a, &format!("{round}")), put(&b, "x")]).await;
            expected.push(format!("{revision} {a}={round}"));
            expected.push(format!("{revision} {b}=x"));
        }
        cluster.kill(0);
        let unreachable = tokio::time::timeout(Duration::from_millis(500), other.barrier()).await;
        assert!(unreachable.is_err(), "without a cluster nobody knows what is newest");
        assert_eq!(value(&other, "/b/3").as_deref(), Some("x"), "what is here can be read");
        cluster.launch(0);
        cluster.wait_healthy(0);
        store.barrier().await.unwrap();
        other.barrier().await.unwrap();
    }
    let found: Vec<_> = next(&mut watcher, expected.len()).await.iter().map(|event| told(event)).collect();
    assert_eq!(found, expected);
    assert!(watcher.take().unwrap().is_empty(), "none twice");
    assert_eq!(watcher.progress(), store.revision());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compacted_meanwhile_ends_watches_and_nothing_else() {
    let cluster = Cluster::start(1, &[]);
    let wire = Wire::to(cluster.members[0].port).await;
    let store = open(cluster.config_by(&[wire.port])).await;
    let other = open(Config { compaction_interval: Some(Duration::from_millis(150)), ..cluster.config() }).await;
    commit(&other, vec![put("/stays", "1"), put("/goes", "1"), put("/changes", "1")]).await;
    store.barrier().await.unwrap();
    let seen = store.revision();
    let mut watcher = store.watch("/", seen).unwrap();
    wire.cut();
    let mut number = 0;
    while cluster.metric(0, "etcd_debugging_mvcc_db_compaction_keys_total") < 30.0 {
        let gone = store::Op::Delete { key: "/goes".to_owned() };
        commit(&other, vec![put("/changes", &number.to_string()), gone]).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((value(&store, "/goes").as_deref(), store.revision()), (Some("1"), seen));
    wire.mend();
    let ended = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.unwrap();
    assert!(matches!(ended, Err(Error::Compacted { requested, .. }) if requested == seen), "{ended:?}");
    store.barrier().await.unwrap();
    assert_eq!(value(&store, "/goes"), None);
    assert_eq!(value(&store, "/changes"), Some((number - 1).to_string()));
    assert_eq!(value(&store, "/stays").as_deref(), Some("1"));
    assert!(matches!(store.watch("/", seen), Err(Error::Compacted { .. })));
    // From the new state on all is as before.
    let mut watcher = store.watch("/", store.revision()).unwrap();
    let revision = commit(&store, vec![put("/stays", "2")]).await;
    let events: Vec<_> = next(&mut watcher, 1).await.iter().map(|event| told(event)).collect();
    assert!(events.contains(&format!("{revision} /stays=2")) || events[0].contains("compact_rev_key"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transactions_come_whole() {
    let cluster = Cluster::start(1, &[]);
    let wire = Wire::to(cluster.members[0].port).await;
    let store = open(cluster.config_by(&[wire.port])).await;
    let other = open(cluster.config()).await;
    let mut watcher = store.watch("/", store.revision()).unwrap();
    // Resumed from far behind, etcd sends what is too large for one message in pieces.
    wire.cut();
    for round in 0..10 {
        let text = format!("{round}").repeat(20_000);
        commit(&other, (0..60).map(|number| put(&format!("/{number}"), &text)).collect()).await;
    }
    wire.mend();
    let mut seen = 0;
    while seen < 600 {
        let events = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.unwrap().unwrap();
        for transaction in events.chunk_by(|a, b| a.revision == b.revision) {
            assert_eq!(transaction.len(), 60, "revision {}", transaction[0].revision);
        }
        seen += events.len();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_know_says_so() {
    let cluster = Cluster::start(1, &[]);
    let (wire, direct) = (Wire::to(cluster.members[0].port).await, open(cluster.config()).await);
    let store = open(cluster.config_by(&[wire.port])).await;
    commit(&store, vec![put("/counter", "0"), put("/guarded", "0")]).await;
    let seen = store.get("/guarded").unwrap().mod_revision;

    // Sent, done, and the answer lost: an unconditional write is not sent again.
    wire.swallow_answers();
    let lost = tokio::spawn({
        let store = store.clone();
        async move { store.commit(txn(&[], vec![put("/counter", "1")])).await }
    });
    wait_for(&direct, "/counter", "1").await;
    wire.break_connections();
    let error = tokio::time::timeout(Duration::from_secs(5), lost).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Uncertain { .. }), "{error}");
    wire.mend();
    store.barrier().await.unwrap();
    assert_eq!(store.get("/counter").unwrap().version, 2, "done once");

    // Sent, done, the answer lost, and sent again: its condition does not hold any more.
    wire.swallow_answers();
    let lost = tokio::spawn({
        let store = store.clone();
        let write = txn(&[("/guarded", Expect::ModRevision(seen))], vec![put("/guarded", "1")]);
        async move { store.commit(write).await }
    });
    wait_for(&direct, "/guarded", "1").await;
    wire.mend();
    wire.break_connections();
    let error = tokio::time::timeout(Duration::from_secs(20), lost).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Uncertain { .. }), "{error}");
    store.barrier().await.unwrap();
    assert_eq!(store.get("/guarded").unwrap().version, 2, "done once");

    // Not sent at all: it is sent as soon as that is possible, whatever it is.
    wire.cut();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.commit(txn(&[], vec![put("/late", "1")])).await }
    });
    tokio::time::sleep(Duration::from_millis(700)).await;
    wire.mend();
    let outcome = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(matches!(outcome, Ok(Outcome::Committed { .. })), "{outcome:?}");
}

async fn wait_for(store: &crate::TextStore, key: &str, text: &str) {
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    while value(store, key).as_deref() != Some(text) {
        assert!(tokio::time::Instant::now() < until, "{key} is {:?}", value(store, key));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_went_back_is_refused() {
    let mut cluster = Cluster::start(1, &[]);
    let store = open(cluster.config()).await;
    commit(&store, vec![put("/a", "1")]).await;
    cluster.kill(0);
    let backup = cluster.dir.path().join("backup");
    copy(&cluster.data(0), &backup);
    cluster.launch(0);
    cluster.wait_healthy(0);
    store.barrier().await.unwrap();
    let mut watcher = store.watch("/", store.revision()).unwrap();
    let newest = commit(&store, vec![put("/a", "2")]).await;
    next(&mut watcher, 1).await;
    cluster.kill(0);
    std::fs::remove_dir_all(cluster.data(0)).unwrap();
    copy(&backup, &cluster.data(0));
    cluster.launch(0);
    cluster.wait_healthy(0);
    let ended = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.unwrap();
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
    for error in [store.barrier().await.unwrap_err(), store.commit(txn(&[], vec![put("/a", "3")])).await.unwrap_err()] {
        assert!(matches!(&error, Error::Refused { reason } if reason.contains(&newest.to_string())), "{error}");
    }
    assert_eq!(value(&store, "/a").as_deref(), Some("2"), "what is in memory can be read");
    let keys = Keys::new(&cluster.config()).unwrap();
    assert_eq!(keys.get("/a").await.unwrap().unwrap().0, "1", "nothing was written to it");
    assert_eq!(value(&open(cluster.config()).await, "/a").as_deref(), Some("1"), "a new start takes it as it is");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
