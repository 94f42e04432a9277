//! Servers that keep their state in an etcd, and moving there and back.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{CONFIG_MAPS, Client, Site, config_map, names, until};

const ENDPOINT: &str = "http://127.0.0.1:2379";

/// One member in the site's network namespace.
pub struct Etcd(Child);

impl Etcd {
    pub fn start(site: &Site) -> Self {
        let log = fs::File::create(site.path("etcd.log")).unwrap();
        let child = Command::new("etcd")
            .args(["--listen-client-urls", ENDPOINT, "--advertise-client-urls", ENDPOINT, "--logger", "zap"])
            .arg("--data-dir")
            .arg(site.path("etcd"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("these tests need etcd: apt-get install etcd-server");
        until("etcd", || std::net::TcpStream::connect("127.0.0.1:2379").ok());
        Etcd(child)
    }

    /// kill -9, and a start on the data that there are.
    pub fn kill_and_restart(&mut self, site: &Site) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        *self = Etcd::start(site);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn endpoint() -> String {
    format!("--datastore-endpoint={ENDPOINT}")
}

/// Name → resourceVersion of the config maps that tests made.
fn versions(site: &Site, client: &Client) -> Vec<(String, u64)> {
    let list = site.block_on(client.get(CONFIG_MAPS));
    let items = list["items"].as_array().unwrap().iter();
    let version = |item: &Value| item["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    items
        .map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), version(item)))
        .filter(|(name, _)| name.starts_with("cm-"))
        .collect()
}

fn holder(site: &Site, client: &Client, lease: &str) -> Option<String> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{lease}");
    let (status, lease) = site.block_on(client.call("GET", &path, None)).unwrap();
    let holder = (status == 200).then(|| lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned());
    holder.filter(|holder| !holder.is_empty())
}

fn token_of(data: &Path) -> String {
    fs::read_to_string(data.join("token")).unwrap()
}

#[test]
fn two_servers_on_one_etcd() {
    let site = Site::new();
    let _etcd = Etcd::start(&site);
    let (endpoint, second) = (endpoint(), site.path("second"));
    let one = site.start(&["--disable-agent", &endpoint, "--node-ip=10.0.0.1"]);
    let first_client = site.connect();
    until("a leader", || holder(&site, &first_client, "kube-controller-manager"));

    let others = ["--disable-agent", &endpoint, "--https-listen-port=7443", "--node-name=n2", "--node-ip=10.0.0.2"];
    let wrong = site.refused_in(&second, &[&others[..], &["--token=wrong"]].concat());
    assert!(wrong.contains("the data store belongs to a cluster with another token"), "{wrong}");
    let right = format!("--token={}", token_of(&one.data));
    let two = site.start_in(&second, &[&others[..], &[&right]].concat());
    for shared in ["server-ca.crt", "client-ca.key", "service-account.key"] {
        let read = |data: &Path| fs::read(data.join("tls").join(shared)).unwrap();
        assert_eq!(read(&one.data), read(&two.data), "{shared}");
    }
    let second_client = site.block_on(Client::connect_at(&two.data, 7443));

    // What one has acknowledged, the other shows and goes on from at once.
    for n in 0..50 {
        let (status, made) = site.block_on(first_client.post(CONFIG_MAPS, &config_map(&format!("cm-{n}"), 10)));
        assert_eq!(status, 201, "{made}");
        let path = format!("{CONFIG_MAPS}/cm-{n}");
        assert_eq!(site.block_on(second_client.get(&path))["metadata"], made["metadata"]);
        let mut changed = made.clone();
        changed["data"]["d"] = json!("changed");
        let (status, answer) = site.block_on(second_client.call("PUT", &path, Some(&changed))).unwrap();
        assert_eq!(status, 200, "{answer}");
        let (status, answer) = site.block_on(first_client.call("PUT", &path, Some(&changed))).unwrap();
        assert_eq!(status, 409, "{answer}");
        let version = answer_version(&site, &first_client, &path);
        assert!(version > made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap());
        let list = site.block_on(second_client.get(CONFIG_MAPS));
        assert!(names(&list).contains(&format!("cm-{n}")));
        let (status, _) = site.block_on(second_client.call("DELETE", &path, None)).unwrap();
        assert_eq!(status, 200);
        let (status, _) = site.block_on(first_client.call("GET", &path, None)).unwrap();
        assert_eq!(status, 404);
    }

    // One key signs for all.
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = until("the service account", || {
        let (status, answer) = site.block_on(first_client.post(path, &request));
        (status == 201).then(|| answer["status"]["token"].clone())
    });
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let (_, reviewed) = site.block_on(second_client.post("/apis/authentication.k8s.io/v1/tokenreviews", &review));
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:default:default", "{reviewed}");

    // One of them leads; when it is killed, the other does.
    for lease in ["kube-controller-manager", "kube-scheduler"] {
        assert!(holder(&site, &second_client, lease).unwrap().starts_with("n1_"), "{lease}");
    }
    let addresses = || {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
        let slice = site.block_on(second_client.get(path));
        let endpoints = slice["endpoints"].as_array().unwrap().clone();
        endpoints.into_iter().map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(addresses(), ["10.0.0.1", "10.0.0.2"], "the service of the API leads to both");
    one.kill();
    until("the other leads", || {
        let leads = |lease| holder(&site, &second_client, lease).is_some_and(|holder| holder.starts_with("n2_"));
        (leads("kube-controller-manager") && leads("kube-scheduler")).then_some(())
    });
    let (status, _) = site.block_on(second_client.post(
        "/api/v1/namespaces",
        &json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "made-later"},
        }),
    ));
    assert_eq!(status, 201);
    until("the endpoint of the dead one to go", || (addresses() == ["10.0.0.2"]).then_some(()));
    until("its controllers work", || {
        let path = "/api/v1/namespaces/made-later/serviceaccounts/default";
        (site.block_on(second_client.call("GET", path, None)).unwrap().0 == 200).then_some(())
    });
}

fn answer_version(site: &Site, client: &Client, path: &str) -> u64 {
    site.block_on(client.get(path))["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn there_and_back() {
    let site = Site::new();
    let _etcd = Etcd::start(&site);
    let (endpoint, data, back) = (endpoint(), site.data().display().to_string(), site.path("back"));
    let server = site.start_api();
    let client = site.connect();
    for n in 0..300 {
        let (status, made) = site.block_on(client.post(CONFIG_MAPS, &config_map(&format!("cm-{n}"), 1000)));
        assert_eq!(status, 201, "{made}");
    }
    let embedded = versions(&site, &client);
    let newest = embedded.iter().map(|(_, version)| *version).max().unwrap();
    let copy = ["datastore", "copy", "--from", &data, "--to", ENDPOINT];
    let (code, _, said) = site.run(&copy);
    assert_eq!((code, said), (1, format!("coxswain: another coxswain is running on {data}\n")));
    assert!(server.stop().0.success());

    let (code, said, errors) = site.run(&copy);
    assert_eq!(code, 0, "{errors}");
    assert!(said.contains("keys copied"), "{said}");
    let (code, _, said) = site.run(&copy);
    assert_eq!(code, 1);
    assert!(said.contains("there are keys below /registry/ already"), "{said}");

    // A server elsewhere, that knows the token alone.
    let token = format!("--token={}", token_of(&site.data()));
    let elsewhere = site.path("elsewhere");
    let server = site.start_in(&elsewhere, &["--disable-agent", &endpoint, &token]);
    let client = site.block_on(Client::connect(&elsewhere));
    let moved = versions(&site, &client);
    let without = |all: &[(String, u64)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(without(&moved), without(&embedded));
    assert!(moved.iter().all(|(_, version)| *version > newest), "no version is told twice");
    let authority = |data: &Path| fs::read(data.join("tls/server-ca.crt")).unwrap();
    assert_eq!(authority(&elsewhere), authority(&site.data()));
    let (status, _) = site.block_on(client.post(CONFIG_MAPS, &config_map("cm-on-etcd", 10)));
    assert_eq!(status, 201);
    let moved = versions(&site, &client);
    assert!(server.stop().0.success());

    let target = back.display().to_string();
    let home = ["datastore", "copy", "--from", ENDPOINT, "--to", &target];
    let (code, _, said) = site.run(&home);
    assert_eq!(code, 1);
    assert!(said.contains("--token is needed"), "{said}");
    let (code, _, said) = site.run(&[&home[..], &["--token=wrong"]].concat());
    assert_eq!(code, 1);
    assert!(said.contains("another token"), "{said}");
    let (code, _, errors) = site.run(&[&home[..], &[&token]].concat());
    assert_eq!(code, 0, "{errors}");
    let (code, _, said) = site.run(&[&home[..], &[&token]].concat());
    assert_eq!(code, 1);
    assert!(said.contains("holds a store already"), "{said}");
    let _server = site.start_in(&back, &["--disable-agent"]);
    let client = site.block_on(Client::connect(&back));
    assert_eq!(versions(&site, &client), moved, "with the versions that they had");
    let (status, made) = site.block_on(client.post(CONFIG_MAPS, &config_map("cm-at-home", 10)));
    assert_eq!(status, 201);
    let version: u64 = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(moved.iter().all(|(_, older)| *older < version));
}

#[test]
fn an_endpoint_that_cannot_be() {
    let site = Site::new();
    for (endpoint, why) in [
        ("sqlite", "neither `embedded`, `memory` nor an endpoint"),
        ("ftp://a", "does not begin with https://, http:// or unix://"),
        ("http://127.0.0.1:1", "Connection refused"),
    ] {
        let said = site.refused(&["--disable-agent", &format!("--datastore-endpoint={endpoint}")]);
        assert!(said.contains(why), "{endpoint}: {said}");
    }
}
