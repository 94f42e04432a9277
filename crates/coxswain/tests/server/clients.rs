//! Clients that dawdle, idle in thousands, come with an expired certificate, or stay to the end.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::BodyExt as _;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{CONFIG_MAPS, Client, PATIENCE, PORT, Site, config_map, tls};

#[test]
fn unfinished_handshakes_and_heads_hold_up_nobody() {
    let site = Site::new();
    let server = site.start_api();
    let client = site.connect();
    site.block_on(async {
        let mut silent = Vec::new();
        for _ in 0..500 {
            silent.push(TcpStream::connect(("127.0.0.1", PORT)).await.unwrap());
        }
        let mut slow = Vec::new();
        for _ in 0..100 {
            let mut stream = tls(&server.data, None, b"http/1.1").await.unwrap();
            stream.write_all(b"GET /api/v1/pods HTTP/1.1\r\nHost: localhost\r\nX-").await.unwrap();
            slow.push(stream);
        }
        let started = Instant::now();
        let others = Client::connect(&server.data).await;
        others.get("/api/v1/namespaces/default").await;
        client.get("/api/v1/namespaces/default").await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    });
}

const WATCHES: usize = 2000;
const CONNECTIONS: usize = 4;

#[test]
fn thousands_of_idle_watches_cost_little() {
    let site = Site::new();
    let server = site.start_api();
    let client = site.connect();
    let path = format!("{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Dnone");
    let write = async |prefix: &str| {
        let started = Instant::now();
        for n in 0..50 {
            let (status, answer) = client.post(CONFIG_MAPS, &config_map(&format!("{prefix}{n}"), 100)).await;
            assert_eq!(status, 201, "{answer}");
        }
        started.elapsed() / 50
    };
    site.block_on(async {
        let before = write("before").await;
        let memory = server.resident_kib();
        let mut watches = Vec::new();
        for _ in 0..CONNECTIONS {
            let watcher = Client::connect(&server.data).await;
            for _ in 0..WATCHES / CONNECTIONS {
                let response = watcher.open("GET", &path, None).await.unwrap();
                assert_eq!(response.status(), 200);
                watches.push(response);
            }
        }
        let each_kib = server.resident_kib().saturating_sub(memory) / WATCHES as u64;
        let after = write("after").await;
        println!("{each_kib} KiB for each watch; a write took {before:?}, and then {after:?}");
        assert!(each_kib < 64, "{each_kib} KiB for each watch");
        assert!(after < before * 4 + Duration::from_millis(100), "a write took {before:?}, and then {after:?}");
    });
}

/// A certificate of the cluster's own authority for an administrator, good for an hour that ended a minute ago.
fn expired(site: &Site) -> (String, String) {
    let read = |name: &str| fs::read_to_string(site.data().join("tls").join(name)).unwrap();
    let authority = KeyPair::from_pem(&read("client-ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("client-ca.crt"), authority).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "late");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3660)).into();
    params.not_after = (now - Duration::from_secs(60)).into();
    (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

#[test]
fn an_expired_certificate_is_nobodys() {
    let site = Site::new();
    let server = site.start_api();
    let (certificate, key) = expired(&site);
    let (status, answer) = site.block_on(async {
        let client = Client::connect_as(&server.data, Some((&certificate, &key))).await.unwrap();
        client.call("GET", "/api/v1/namespaces", None).await.unwrap()
    });
    assert_eq!((status, answer["reason"].as_str()), (401, Some("Unauthorized")), "{answer}");
}

#[test]
fn a_stop_waits_for_no_watch() {
    let site = Site::new();
    let server = site.start_api();
    let client = site.connect();
    let path = format!("{CONFIG_MAPS}?watch=true");
    site.block_on(async {
        let mut watch = client.open("GET", &path, None).await.unwrap().into_body();
        let stopping = tokio::task::spawn_blocking(move || server.stop());
        let ended = async { while watch.frame().await.is_some_and(|frame| frame.is_ok()) {} };
        tokio::time::timeout(PATIENCE, ended).await.unwrap();
        let (status, took) = stopping.await.unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(3), "{took:?}");
    });
}
