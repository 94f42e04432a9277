//! Endpoints and endpoint slices as the controllers make them, and as kube-proxy uses those that clients make.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;
use crate::tests::lifecycle::discovered;

tests! {
    "[sig-network] API Server should have Endpoints and EndpointSlices pointing to API Server [Conformance]" => api_server;
    "[sig-network] EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service [Conformance]" => matching, Form::Slices;
    "[sig-network] EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods [Conformance]" => matching_nothing, Form::Slices;
    "[sig-network] EndpointSlice should support a Service with multiple endpoint IPs specified in multiple EndpointSlices [Conformance]" => several_slices, true;
    "[sig-network] EndpointSlice should support a Service with multiple ports specified in multiple EndpointSlices [Conformance]" => several_slices, false;
    "[sig-network] EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete [Conformance]" => mirroring;
    "[sig-network] EndpointsController should create Endpoints for Pods matching a Service [Conformance]" => matching, Form::Endpoints;
    "[sig-network] EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods [Conformance]" => matching_nothing, Form::Endpoints;
}

/// Which of the two kinds is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Endpoints,
    Slices,
}

/// The label selector of a service's slices.
fn of(service: &str) -> String {
    format!("kubernetes.io/service-name={service}")
}

/// A port number behind a name, and the pods that have it.
type Backends = BTreeMap<(String, i64), BTreeSet<String>>;

/// What objects of a form say: ports, and the UIDs of the pods behind them. An address whose target is no pod is an error.
fn backends(form: Form, objects: &Objects) -> Result<Backends, String> {
    let mut found = Backends::new();
    for object in objects.values() {
        let (groups, members) = match form {
            Form::Slices => (vec![object.clone()], "/endpoints"),
            Form::Endpoints => (items(object, "/subsets").to_vec(), "/addresses"),
        };
        for group in groups {
            let ports = items(&group, "/ports");
            when(ports.len() <= 1, || format!("ports {ports:?} of a service with one"))?;
            for port in ports {
                is(port, "/protocol", "TCP")?;
                let pods = found.entry((text(port, "/name").to_owned(), number(port, "/port"))).or_default();
                for member in items(&group, members) {
                    let target = at(member, "/targetRef");
                    let of_pod = text(target, "/kind") == "Pod"
                        && text(target, "/namespace") == text(object, "/metadata/namespace")
                        && !text(target, "/name").is_empty();
                    when(of_pod, || format!("{member} is of no pod"))?;
                    pods.insert(text(member, "/targetRef/uid").to_owned());
                }
            }
        }
    }
    Ok(found)
}

/// Waits until a service has exactly these backends in a form.
async fn expect_backends(cx: &Cx, form: Form, service: &str, wanted: &Backends) -> Result<Objects> {
    cx.step(format!("backends of {service}"));
    let look = |objects: &Objects| {
        let found = backends(form, objects)?;
        when(found == *wanted, || format!("{found:?}, expected {wanted:?}"))
    };
    let selector = of(service);
    let by_name = format!("metadata.name={service}");
    match form {
        Form::Slices => {
            cx.api(&kinds::ENDPOINT_SLICE).wait(&labelled(&selector), POD, "slices of the service", look).await
        }
        Form::Endpoints => {
            let query = [("fieldSelector", by_name.as_str())];
            cx.api(&kinds::ENDPOINTS).wait(&query, POD, "endpoints of the service", look).await
        }
    }
}

async fn matching(cx: Arc<Cx>, form: Form) -> Result<()> {
    let pods = cx.api(&kinds::POD);
    let mut uids = Vec::new();
    for (subject, ports) in [("pod1", json!([3000])), ("pod2", json!([3001, 3002]))] {
        let ports = ports.as_array().cloned().unwrap_or_default();
        let names = ["example-name", "other-port"];
        let ports: Vec<Value> =
            ports.iter().zip(names).map(|(port, name)| json!({"name": name, "containerPort": port})).collect();
        let mut container = idle("container1");
        container["ports"] = ports.into();
        let mut pod = pod(subject, container);
        pod["metadata"]["labels"] = json!({subject: "on", "shared12": "on"});
        uids.push(uid(&pods.create(&pod).await?).to_owned());
    }
    let service = |name: &str, selector: &str, port: Value| {
        json!({"metadata": {"name": name}, "spec": {
            "selector": {selector: "on"}, "publishNotReadyAddresses": true, "ports": [port],
        }})
    };
    let (by_number, by_name) = ("example-int-port", "example-named-port");
    let services = cx.api(&kinds::SERVICE);
    services.create(&service(by_number, "pod1", json!({"name": "example", "port": 80, "targetPort": 3000}))).await?;
    services
        .create(&service(by_name, "shared12", json!({"name": "http", "port": 80, "targetPort": "example-name"})))
        .await?;
    let one = |uid: &String| BTreeSet::from([uid.clone()]);
    let single = Backends::from([(("example".to_owned(), 3000), one(&uids[0]))]);
    expect_backends(&cx, form, by_number, &single).await?;
    // The pods have the named port at different numbers.
    let named =
        Backends::from([(("http".to_owned(), 3000), one(&uids[0])), (("http".to_owned(), 3001), one(&uids[1]))]);
    let made = expect_backends(&cx, form, by_name, &named).await?;
    cx.step("made again after their deletion");
    let api = cx.api(if form == Form::Slices { &kinds::ENDPOINT_SLICE } else { &kinds::ENDPOINTS });
    let old: BTreeSet<&str> = made.values().map(uid).collect();
    for object in made.keys() {
        api.delete(object).await?;
    }
    for (object, deleted) in &made {
        if form == Form::Slices {
            api.wait_gone(object, SOON).await?;
        } else {
            let anew = |object: &Value| when(uid(object) != uid(deleted), || "still the old object".to_owned());
            api.wait_one(object, SOON, "endpoints made again", anew).await?;
        }
    }
    let again = expect_backends(&cx, form, by_name, &named).await?;
    ensure!(again.values().all(|object| !old.contains(uid(object))), "a deleted object is back with its old UID");
    Ok(())
}

/// How long upstream waits for what a controller makes of a service at once.
const CREATED: Duration = Duration::from_secs(30);

async fn matching_nothing(cx: Arc<Cx>, form: Form) -> Result<()> {
    const SERVICE: &str = "example-empty-selector";
    let service = json!({"metadata": {"name": SERVICE}, "spec": {
        "selector": {"does-not-match-anything": "endpoints-should-still-be-created"},
        "ports": [{"name": "example", "port": 80, "protocol": "TCP"}],
    }});
    cx.api(&kinds::SERVICE).create(&service).await?;
    let selector = of(SERVICE);
    let slices = cx.api(&kinds::ENDPOINT_SLICE);
    let endpoints = cx.api(&kinds::ENDPOINTS);
    match form {
        Form::Slices => {
            let mine = labelled(&selector);
            let made = slices
                .wait(&mine, CREATED, "a slice", |slices| when(!slices.is_empty(), || "there is none".to_owned()));
            for slice in made.await?.values() {
                let manager = at(slice, "/metadata/labels/endpointslice.kubernetes.io~1managed-by");
                ensure!(*manager == "endpointslice-controller.k8s.io", "the slice is managed by {manager}");
                ensure!(items(slice, "/endpoints").is_empty(), "the slice has endpoints: {slice}");
            }
        }
        Form::Endpoints => {
            let made = endpoints.wait_one(SERVICE, CREATED, "endpoints", |_| Ok(())).await?;
            ensure!(items(&made, "/subsets").is_empty(), "the endpoints are not empty: {made}");
        }
    }
    cx.step("deleted with the service");
    cx.api(&kinds::SERVICE).delete(SERVICE).await?;
    match form {
        Form::Slices => slices.wait_none(&labelled(&selector), Duration::from_secs(90)).await,
        Form::Endpoints => endpoints.wait_gone(SERVICE, CREATED).await,
    }
}

async fn api_server(cx: Arc<Cx>) -> Result<()> {
    let endpoints = cx.api_in(&kinds::ENDPOINTS, "default").get("kubernetes").await?;
    let subsets = items(&endpoints, "/subsets");
    ensure!(!subsets.is_empty(), "the endpoints have no subsets: {endpoints}");
    let ips = |subset: &Value, list: &str| -> Vec<String> {
        items(subset, list).iter().map(|address| text(address, "/ip").to_owned()).collect()
    };
    let of_subset = |subset: &Value| [ips(subset, "/addresses"), ips(subset, "/notReadyAddresses")].concat();
    let wanted: BTreeSet<String> = subsets.iter().flat_map(of_subset).collect();
    ensure!(!wanted.is_empty(), "the endpoints have no address: {endpoints}");
    let port = |port: &Value| (text(port, "/name").to_owned(), number(port, "/port"));
    let wanted_ports: BTreeSet<_> = items(&subsets[0], "/ports").iter().map(port).collect();
    let selector = of("kubernetes");
    let list = cx.api_in(&kinds::ENDPOINT_SLICE, "default").list(&labelled(&selector)).await?;
    // Endpoints are of one family only.
    let slices: Vec<&Value> = items(&list, "/items").iter().filter(|s| text(s, "/addressType") == "IPv4").collect();
    ensure!(!slices.is_empty(), "there is no slice");
    let mut found = BTreeSet::new();
    for slice in slices {
        let ports: BTreeSet<_> = items(slice, "/ports").iter().map(port).collect();
        ensure!(ports == wanted_ports, "slice {} has ports {ports:?}, expected {wanted_ports:?}", name(slice));
        let addresses = items(slice, "/endpoints").iter().flat_map(|endpoint| items(endpoint, "/addresses"));
        found.extend(addresses.map(|address| address.as_str().unwrap_or_default().to_owned()));
    }
    ensure!(found == wanted, "the slices have {found:?}, the endpoints {wanted:?}");
    Ok(())
}

/// How long upstream waits for the mirror of each change.
const MIRRORED: Duration = Duration::from_secs(12);

async fn mirroring(cx: Arc<Cx>) -> Result<()> {
    const SERVICE: &str = "example-custom-endpoints";
    discovered(&cx, &kinds::ENDPOINT_SLICE, false).await?;
    let service =
        json!({"metadata": {"name": SERVICE}, "spec": {"ports": [{"name": "example", "port": 80, "protocol": "TCP"}]}});
    cx.api(&kinds::SERVICE).create(&service).await?;
    let object = |address: &str| json!({"metadata": {"name": SERVICE}, "subsets": [{"ports": [{"port": 80}], "addresses": [{"ip": address}]}]});
    let (endpoints, slices) = (cx.api(&kinds::ENDPOINTS), cx.api(&kinds::ENDPOINT_SLICE));
    let selector = of(SERVICE);
    let mine = labelled(&selector);
    let mirrored = async |address: &str| {
        cx.step(format!("mirrored {address}"));
        slices
            .wait(&mine, MIRRORED, "mirrored slice", |slices| {
                when(slices.len() == 1, || format!("{} slices", slices.len()))?;
                slices.values().try_for_each(|slice| {
                    is(slice, "/ports/0/port", 80)?;
                    when(items(slice, "/ports").len() == 1, || "more than one port".to_owned())?;
                    let addresses: Vec<&Value> =
                        items(slice, "/endpoints").iter().map(|e| at(e, "/addresses")).collect();
                    when(addresses == [&json!([address])], || format!("addresses {addresses:?}, expected {address}"))
                })
            })
            .await
    };
    endpoints.create(&object("10.1.2.3")).await?;
    mirrored("10.1.2.3").await?;
    // As the client would make it, without a word on which state of it is meant.
    endpoints.send("PUT", &[SERVICE], &[], Some(&object("10.2.3.4"))).await?;
    mirrored("10.2.3.4").await?;
    endpoints.delete(SERVICE).await?;
    slices.wait_none(&mine, MIRRORED).await
}

/// A service without selector whose slices a client makes: one pod with two ports, or two pods.
async fn several_slices(cx: Arc<Cx>, two_pods: bool) -> Result<()> {
    const SERVICE: &str = "example-custom-endpoints";
    let ports = json!([
        {"name": "port80", "port": 80, "protocol": "TCP"}, {"name": "port81", "port": 81, "protocol": "TCP"},
    ]);
    let made =
        cx.api(&kinds::SERVICE).create(&json!({"metadata": {"name": SERVICE}, "spec": {"ports": ports}})).await?;
    let ip = text(&made, "/spec/clusterIP").to_owned();
    // Where each of the service's ports leads: the pod, its address and its port.
    let mut backends = Vec::new();
    if two_pods {
        for subject in ["server1", "server2"] {
            let server = cx.start(&pod(subject, serving("server", &["echo", "--port", "8090"]))).await?;
            backends.push((subject, text(&server, "/status/podIP").to_owned(), 8090));
        }
    } else {
        let both = ["echo", "--port", "8090", "--port", "9090"];
        let server = cx.start(&pod("server1", serving("server", &both))).await?;
        let address = text(&server, "/status/podIP");
        backends.extend([("server1", address.to_owned(), 8090), ("server1", address.to_owned(), 9090)]);
    }
    for ((_, address, port), of_service) in backends.iter().zip(["port80", "port81"]) {
        let labels = json!({
            "kubernetes.io/service-name": SERVICE, "endpointslice.kubernetes.io/managed-by": format!("conformance-{}", cx.ns),
        });
        let slice = json!({
            "metadata": {"generateName": "custom-slice-", "labels": labels}, "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": of_service, "port": port, "protocol": "TCP"}],
        });
        cx.api(&kinds::ENDPOINT_SLICE).create(&slice).await?;
    }
    cx.start(&pod("client", container("client", TOOLS, &["sh", "-c", "sleep 100000"]))).await?;
    for ((server, ..), port) in backends.iter().zip([80, 81]) {
        super::services::reaches(&cx, "client", &format!("http://{ip}:{port}/"), server).await?;
    }
    Ok(())
}
