//! Several stores on one etcd; times to live; limits; compaction.

use std::time::{Duration, Instant};

use store::etcd::{Config, Keys};
use store::{Error, Expect, Op, Options, Outcome, Range, Store};

use crate::cluster::Cluster;
use crate::{Text, TextStore, commit, next, open, put, told, txn, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_shows_what_the_other_wrote() {
    let cluster = Cluster::start(1, &[]);
    let config = Config { prefix: "/ours/".to_owned(), ..cluster.config() };
    let (one, two) = (open(config.clone()).await, open(config.clone()).await);
    let foreign = Keys::new(&config).unwrap();
    for number in 0..300 {
        let (writer, reader) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let text = number.to_string();
        let revision = commit(writer, vec![put("/ours/a", &text)]).await;
        assert_eq!(value(writer, "/ours/a").as_deref(), Some(&*text), "its own writes are seen at once");
        reader.barrier().await.unwrap();
        assert_eq!(value(reader, "/ours/a").as_deref(), Some(&*text));
        assert!(reader.revision() >= revision);
        // What others write moves the revision, and is not seen.
        assert!(foreign.put_if(&format!("/theirs/{number}"), "x".into(), 0).await.unwrap());
        reader.barrier().await.unwrap();
        assert_eq!(reader.revision(), revision + 1);
    }
    assert_eq!(one.range(&Range::prefix("")).unwrap().entries.len(), 1);
    let refused = one.commit(txn(&[], vec![put("/theirs/x", "")])).await;
    assert!(matches!(refused, Err(Error::Configuration { .. })));
    // Many that wait share few questions, and none gets an answer that is too old.
    let before = cluster.metric(0, "etcd_debugging_mvcc_range_total");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2000 {
        let two = two.clone();
        tasks.spawn(async move { two.barrier().await.unwrap() });
    }
    tasks.join_all().await;
    let asked = cluster.metric(0, "etcd_debugging_mvcc_range_total") - before;
    assert!(asked < 500.0, "{asked} questions for 2000 barriers");
}

/// Each increment is read, compared and written; two processes' worth of writers never lose one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn optimistic_writers_lose_no_increment() {
    const WRITERS: usize = 4;
    const EACH: usize = 50;
    let cluster = Cluster::start(1, &[]);
    let stores = [open(cluster.config()).await, open(cluster.config()).await];
    commit(&stores[0], vec![put("/counter", "0")]).await;
    stores[1].barrier().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS * 2 {
        let store = stores[writer % 2].clone();
        tasks.spawn(async move {
            let mut conflicts = 0;
            for _ in 0..EACH {
                loop {
                    let seen = store.get("/counter").unwrap();
                    let next = seen.value.text().parse::<u64>().unwrap() + 1;
                    let compares = [("/counter", Expect::ModRevision(seen.mod_revision))];
                    let ops = vec![put("/counter", &next.to_string())];
                    match store.commit(txn(&compares, ops)).await.unwrap() {
                        Outcome::Committed { .. } => break,
                        Outcome::Failed { current } => {
                            let current = current[0].as_ref().unwrap();
                            assert!(current.mod_revision > seen.mod_revision);
                            // Who decides anew by the index decides by at least this.
                            assert!(store.get("/counter").unwrap().mod_revision >= current.mod_revision);
                            conflicts += 1;
                        }
                    }
                }
            }
            conflicts
        });
    }
    let conflicts: usize = tasks.join_all().await.into_iter().sum();
    assert!(conflicts > 0, "they have met");
    for store in stores {
        store.barrier().await.unwrap();
        assert_eq!(value(&store, "/counter"), Some((WRITERS * 2 * EACH).to_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_when_their_time_is_over() {
    let cluster = Cluster::start(1, &[]);
    let (store, other) = (open(cluster.config()).await, open(cluster.config()).await);
    let with_ttl = |key: &str, seconds| Op::Put {
        key: key.to_owned(),
        value: "v".into(),
        ttl: Some(Duration::from_secs(seconds)),
    };
    let mut watcher = other.watch("", other.revision()).unwrap();
    let start = Instant::now();
    commit(&store, vec![with_ttl("/short", 3), with_ttl("/kept", 3), put("/ever", "v")]).await;
    commit(&store, vec![put("/kept", "now for ever")]).await;
    for number in 0..50 {
        commit(&store, vec![with_ttl(&format!("/long/{number}"), 3600)]).await;
    }
    assert!(cluster.metric(0, "etcd_debugging_lease_granted_total") <= 2.0, "leases are shared");
    let keys = Keys::new(&cluster.config()).unwrap();
    let (all, _) = keys.all("/long/").await.unwrap();
    let (least, most) = (Duration::from_secs(3590), Duration::from_secs(3600 + 60));
    assert!(all.iter().all(|entry| entry.ttl.is_some_and(|ttl| (least..=most).contains(&ttl))), "{all:?}");
    let events = next(&mut watcher, 3 + 1 + 50 + 1).await;
    let gone = told(events.last().unwrap());
    assert!(gone.ends_with("/short gone"), "{gone}");
    assert!(start.elapsed() >= Duration::from_secs(3), "not before its time");
    store.barrier().await.unwrap();
    assert_eq!((value(&store, "/short"), value(&store, "/ever").is_some()), (None, true));
    assert_eq!(value(&store, "/kept").as_deref(), Some("now for ever"), "the last put says how long");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_is_said_and_a_full_cluster_can_be_read() {
    let cluster = Cluster::start(1, &["--quota-backend-bytes", "8388608"]);
    let store = open(cluster.config()).await;
    commit(&store, vec![put("/a", "before")]).await;
    let large = store.commit(txn(&[], vec![put("/large", &"x".repeat(1_700_000))])).await;
    assert!(matches!(large, Err(Error::RequestTooLarge { .. })), "{large:?}");
    let larger = store.commit(txn(&[], vec![put("/large", &"x".repeat(20_000_000))])).await;
    assert!(matches!(larger, Err(Error::RequestTooLarge { .. })), "{larger:?}");
    let many = store.commit(txn(&[], (0..129).map(|n| put(&format!("/many/{n}"), "")).collect())).await;
    assert!(matches!(many, Err(Error::RequestTooLarge { .. })), "{many:?}");
    commit(&store, (0..128).map(|n| put(&format!("/many/{n}"), "")).collect()).await;

    let mut watcher = store.watch("/fill", store.revision()).unwrap();
    let mut written = 0;
    let error = loop {
        match store.commit(txn(&[], vec![put("/fill", &"x".repeat(1_000_000))])).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        // What is written counts only when etcd has it in its file, some time later.
        assert!(written < 200, "eight megabytes are full at last");
    };
    assert!(matches!(&error, Error::DatastoreFull { reason } if reason.contains("space exceeded")), "{error}");
    assert!(written > 2);
    assert_eq!(next(&mut watcher, written).await.len(), written);
    store.barrier().await.unwrap();
    assert_eq!(value(&store, "/a").as_deref(), Some("before"));
    assert_eq!(value(&open(cluster.config()).await, "/a").as_deref(), Some("before"), "opened while it is full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_one_compacts() {
    let interval = Duration::from_millis(400);
    let cluster = Cluster::start(1, &[]);
    let config = Config { compaction_interval: Some(interval), ..cluster.config() };
    let stores = [open(config.clone()).await, open(config.clone()).await, open(config).await];
    let start = Instant::now();
    let mut number = 0;
    while cluster.metric(0, "etcd_debugging_mvcc_db_compaction_keys_total") < 20.0 {
        commit(&stores[number % 3], vec![put("/a", &number.to_string())]).await;
        number += 1;
        assert!(start.elapsed() < Duration::from_secs(20), "nobody compacts");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let rounds = stores[0].get("compact_rev_key").unwrap().version;
    let most = start.elapsed().as_millis() / interval.as_millis() + 1;
    assert!(u128::from(rounds) <= most, "{rounds} rounds where {most} are due");
    for store in &stores {
        store.barrier().await.unwrap();
        assert_eq!(value(store, "/a"), Some((number - 1).to_string()));
        assert!(store.watch("/a", 1).is_ok(), "what is here is not etcd's to forget");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_is_raised_and_never_lowered() {
    const GOAL: u64 = 5_000;
    let cluster = Cluster::start(1, &[]);
    let keys = Keys::new(&cluster.config()).unwrap();
    let start = Instant::now();
    keys.raise_revision("/raised", GOAL).await.unwrap();
    println!("{GOAL} revisions in {:?}", start.elapsed());
    assert_eq!(keys.revision().await.unwrap(), GOAL, "no more writes than are needed");
    keys.raise_revision("/raised", 5).await.unwrap();
    assert_eq!(keys.revision().await.unwrap(), GOAL);
    let entries = [("/a".to_owned(), "1".into(), None), ("/b".to_owned(), "2".into(), Some(Duration::from_secs(100)))];
    keys.put_all(entries).await.unwrap();
    let store = open(cluster.config()).await;
    assert!(store.get("/a").unwrap().create_revision > GOAL);
    assert_eq!(store.range(&Range::prefix("/")).unwrap().entries.len(), 3);
}

/// Why the cluster cannot be used is said within a reasonable time, and names what is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_way_in_is_said() {
    let cluster = Cluster::start(1, &[]);
    let good = cluster.config();
    let said = async |config: Config| match TextStore::open_etcd(config, Options::default()).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    };
    let stranger = said(Config { cert_file: None, key_file: None, ..good.clone() });
    let unbelieved = said(Config { ca_file: good.cert_file.clone(), ..good.clone() });
    let nobody = said(Config { endpoints: vec!["https://127.0.0.1:1".to_owned()], ..good.clone() });
    let (stranger, unbelieved, nobody) = tokio::join!(stranger, unbelieved, nobody);
    assert!(stranger.contains("cannot be reached"), "{stranger}");
    assert!(unbelieved.contains("certificate"), "{unbelieved}");
    assert!(nobody.contains("refused"), "{nobody}");
    let missing = Config { ca_file: Some("/nonexistent/ca.crt".into()), ..good.clone() };
    assert!(said(missing).await.contains("/nonexistent/ca.crt"));
    let store: Store<Text> = open(good).await;
    store.shutdown().await;
    assert!(matches!(store.commit(txn(&[], vec![put("/a", "")])).await, Err(Error::Closed)));
}
