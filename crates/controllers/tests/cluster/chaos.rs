//! Whatever people do meanwhile: once they stop, the cluster comes to rest in exactly the state that was asked for.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::{Cluster, eventually};

fn template(image: u32) -> Value {
    json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c", "image": format!("i:{image}") }] }
    })
}

async fn names<K>(api: &Api<K>) -> Vec<String>
where
    K: client::Kind,
{
    let listed = api.list(&ListParams::default()).await.expect("listed").items;
    listed.iter().filter_map(|object| object.meta().name.clone()).collect()
}

/// One thing that somebody might do. Failures (the object has just gone) are part of it.
async fn disturb(cluster: &Cluster, random: &mut StdRng) {
    let (pods, sets) = (cluster.api::<Pod>(), cluster.api::<ReplicaSet>());
    let pick = |names: Vec<String>, random: &mut StdRng| match names.len() {
        0 => None,
        count => Some(names[random.random_range(0..count)].clone()),
    };
    let merge = PatchParams::default();
    match random.random_range(0..6) {
        0 => {
            if let Some(name) = pick(names(&pods).await, random) {
                let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
            }
        }
        1 => {
            if let Some(name) = pick(names(&pods).await, random) {
                let strayed = json!({ "metadata": { "labels": { "app": "stray" } } });
                let _ = pods.patch(&name, &merge, &Patch::Merge(strayed)).await;
            }
        }
        2 => {
            if let Some(name) = pick(names(&sets).await, random) {
                let resized = json!({ "spec": { "replicas": random.random_range(0..8) } });
                let _ = sets.patch(&name, &merge, &Patch::Merge(resized)).await;
            }
        }
        3 => {
            if let Some(name) = pick(names(&sets).await, random) {
                let _ = sets.delete(&name, &DeleteParams::background()).await;
            }
        }
        4 => {
            let image = json!({ "spec": { "template": template(random.random_range(0..4)) } });
            let _ = cluster.api::<Deployment>().patch("web", &merge, &Patch::Merge(image)).await;
        }
        _ => {
            let size = json!({ "spec": { "replicas": random.random_range(0..8) } });
            let _ = cluster.api::<Deployment>().patch("web", &merge, &Patch::Merge(size)).await;
        }
    }
}

async fn comes_to_rest(seed: u64) {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let mut random = StdRng::seed_from_u64(seed);
    let ports = json!([{ "port": 80 }]);
    cluster
        .create::<Service>(
            json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" }, "ports": ports } }),
        )
        .await;
    let spec = json!({ "replicas": 4, "selector": { "matchLabels": { "app": "web" } }, "template": template(0) });
    cluster.create::<Deployment>(json!({ "metadata": { "name": "web" }, "spec": spec })).await;
    for _ in 0..40 {
        disturb(&cluster, &mut random).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..15))).await;
    }
    cluster.merge::<Deployment>("web", json!({ "spec": { "replicas": 5, "template": template(9) } })).await;
    eventually(&format!("rest after seed {seed}"), || async { at_rest(&cluster).await.then_some(()) }).await;
    // Nothing moves any more.
    let revisions = || async {
        let all = cluster.api::<Pod>().list(&ListParams::default()).await.expect("listed").items;
        all.into_iter().map(|pod| pod.metadata.resource_version).collect::<BTreeSet<_>>()
    };
    let before = revisions().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(before, revisions().await, "seed {seed}");
}

async fn at_rest(cluster: &Cluster) -> bool {
    let deployment = cluster.api::<Deployment>().get("web").await.expect("there");
    let status = deployment.status.clone().unwrap_or_default();
    let counts = [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas];
    let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.expect("listed").items;
    let running: Vec<&ReplicaSet> = sets.iter().filter(|set| set.spec.replicas != Some(0)).collect();
    let pods = cluster.pods("web").await;
    let ips: BTreeSet<String> = pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone()).collect();
    let slices = cluster.api::<EndpointSlice>().list(&ListParams::default()).await.expect("listed").items;
    let sliced: BTreeSet<String> =
        slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).flat_map(|e| e.addresses.clone()).collect();
    let endpoints = cluster.api::<Endpoints>().get("web").await.expect("there").subsets.unwrap_or_default();
    let addresses: BTreeSet<String> = endpoints
        .iter()
        .flat_map(|subset| subset.addresses.iter().flatten())
        .map(|address| address.ip.clone())
        .collect();
    status.observed_generation == deployment.metadata.generation
        && counts == [Some(5); 4]
        && running.len() == 1
        && pods.len() == 5
        && ips == sliced
        && ips == addresses
}

#[tokio::test]
async fn the_cluster_comes_to_rest() {
    for seed in 0..2 {
        comes_to_rest(seed).await;
    }
}
