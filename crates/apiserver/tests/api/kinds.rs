//! What single kinds do through the whole server.

use serde_json::{Value, json};

use crate::harness::{Api, over_both};

over_both!(pods, services, certificates, namespaces, claims, events_expire);

async fn pods(api: Api) {
    let path = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"schedulingGates": [{"name": "g"}],
        "containers": [{"name": "c", "image": "i:1", "resources": {"limits": {"cpu": "1"}}}]}});
    let made = api.ok(&format!("POST {path}"), pod).await;
    assert_eq!(made["spec"]["containers"][0]["resources"]["requests"]["cpu"], "1");
    assert_eq!(made["status"]["conditions"][0]["reason"], "SchedulingGated");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(api.send(&format!("POST {path}/p/binding"), binding.clone()).await.code, 409);
    let open = api.ok(&format!("PATCH {path}/p"), json!({"spec": {"schedulingGates": null}})).await;
    assert_eq!(open["metadata"]["generation"], 2);
    api.ok(&format!("PATCH {path}/p/status"), json!({"status": {"nominatedNodeName": "n"}})).await;
    api.ok(&format!("POST {path}/p/binding"), binding).await;
    let bound = api.get(&format!("{path}/p")).await;
    assert_eq!((&bound["spec"]["nodeName"], &bound["metadata"]["generation"]), (&json!("n"), &json!(2)));
    assert!(bound["status"].get("nominatedNodeName").is_none());
    assert_eq!(bound["status"]["conditions"][0]["status"], "True");
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i:1", "targetContainerName": "c"}]}});
    let line = format!("PATCH {path}/p/ephemeralcontainers");
    let debugged = api.with(&line, &[("content-type", "application/strategic-merge-patch+json")], debug).await;
    assert_eq!((debugged.code, &debugged.body["metadata"]["generation"]), (200, &json!(3)), "{}", debugged.text);
    let moved = api.send(&format!("PATCH {path}/p"), json!({"spec": {"nodeName": "m"}})).await;
    assert_eq!(moved.code, 422);
}

async fn services(api: Api) {
    let path = "/api/v1/namespaces/default/services";
    let service = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
    let ports = json!([{"port": 80}]);
    let made = api.ok(&format!("POST {path}"), service(json!({"type": "NodePort", "ports": ports}))).await;
    let (ip, port) = (made["spec"]["clusterIP"].clone(), made["spec"]["ports"][0]["nodePort"].clone());
    assert_eq!((&made["spec"]["clusterIPs"], &made["spec"]["ipFamilies"]), (&json!([ip]), &json!(["IPv4"])));
    assert!(port.is_i64());
    // What was given stays where the client leaves it out.
    let kept = api.ok(&format!("PUT {path}/s"), service(json!({"type": "NodePort", "ports": ports}))).await;
    assert_eq!((&kept["spec"]["clusterIP"], &kept["spec"]["ports"][0]["nodePort"]), (&ip, &port));
    let balanced = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}});
    let balanced = api.ok(&format!("PATCH {path}/s"), balanced).await;
    assert!(balanced["spec"]["healthCheckNodePort"].is_i64(), "{balanced}");
    assert_eq!(balanced["spec"]["allocateLoadBalancerNodePorts"], true);
    let plain = api.ok(&format!("PATCH {path}/s"), json!({"spec": {"type": "ClusterIP"}})).await;
    let spec = &plain["spec"];
    for gone in ["healthCheckNodePort", "externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
        assert!(spec.get(gone).is_none(), "{gone}: {spec}");
    }
    assert!(spec["ports"][0].get("nodePort").is_none());
    let external = json!({"spec": {"type": "ExternalName", "externalName": "a.example.com"}});
    let external = api.ok(&format!("PATCH {path}/s"), external).await;
    assert!(external["spec"].get("clusterIP").is_none());
    // All that was claimed is free again.
    let mut taken = service(json!({"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": port}]}));
    taken["metadata"]["name"] = json!("t");
    api.ok(&format!("POST {path}"), taken.clone()).await;
    taken["metadata"]["name"] = json!("u");
    assert_eq!(api.send(&format!("POST {path}"), taken).await.code, 422);
    let refused = async |spec: Value| {
        api.send(&format!("POST {path}"), json!({"metadata": {"name": "x"}, "spec": spec})).await.code
    };
    assert_eq!(refused(json!({"ports": ports, "ipFamilies": ["IPv6"]})).await, 422);
    assert_eq!(refused(json!({"ports": ports, "loadBalancerClass": "a/b"})).await, 422);
    assert_eq!(refused(json!({"ports": ports, "clusterIP": "10.43.9.9", "clusterIPs": ["10.43.9.8"]})).await, 422);
    assert_eq!(refused(json!({"ports": ports, "type": "NodePort", "clusterIP": "None"})).await, 422);
}

async fn certificates(api: Api) {
    use base64::Engine as _;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "somebody");
    let key = rcgen::KeyPair::generate().unwrap();
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let request = base64::engine::general_purpose::STANDARD.encode(request);
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let object = json!({"metadata": {"name": "r"}, "spec": {"request": request, "usages": ["client auth"],
        "signerName": "kubernetes.io/kube-apiserver-client", "username": "system:admin", "groups": ["system:masters"]},
        "status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    let made = api.ok(&format!("POST {path}"), object).await;
    assert_eq!(made["spec"]["username"], "tester");
    assert!(made["status"].get("conditions").is_none());
    let taken = api.ok(&format!("PATCH {path}/r"), json!({"spec": {"username": "other"}})).await;
    assert_eq!(taken["spec"]["username"], "tester");
    let approval = json!({"status": {"certificate": "eA==", "conditions": [{"type": "Approved", "status": "True", "reason": "Because"}]}});
    let approved = api.ok(&format!("PATCH {path}/r/approval"), approval).await;
    assert!(approved["status"].get("certificate").is_none());
    assert!(approved["status"]["conditions"][0]["lastTransitionTime"].is_string());
    let denied = json!({"status": {"conditions": [{"type": "Denied", "status": "True"}]}});
    assert_eq!(api.send(&format!("PATCH {path}/r/approval"), denied).await.code, 422);
}

async fn namespaces(api: Api) {
    let made = api.ok("POST /api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    let ending = api.ok("DELETE /api/v1/namespaces/n", Value::Null).await;
    assert_eq!(ending["status"]["phase"], "Terminating");
    let again = api.ok("DELETE /api/v1/namespaces/n", Value::Null).await;
    assert_eq!(again["metadata"]["resourceVersion"], ending["metadata"]["resourceVersion"]);
    let refused = api.send("POST /api/v1/namespaces/n/configmaps", json!({"metadata": {"name": "c"}})).await;
    assert_eq!(refused.code, 403);
    let mut last = ending;
    last["spec"]["finalizers"] = json!([]);
    api.ok("PUT /api/v1/namespaces/n/finalize", last).await;
    assert_eq!(api.send("GET /api/v1/namespaces/n", Value::Null).await.code, 404);
}

async fn claims(api: Api) {
    let path = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"]}});
    let refused = api.send(&format!("POST {path}"), claim.clone()).await;
    assert_eq!(refused.body["details"]["causes"][0]["field"], "spec.resources[storage]", "{}", refused.text);
    let mut sized = claim;
    sized["spec"]["resources"] = json!({"requests": {"storage": "1Gi"}});
    api.ok(&format!("POST {path}"), sized).await;
    let grown = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    assert_eq!(api.send(&format!("PATCH {path}/c"), grown).await.code, 422);
}

/// The time to live is that of the last write, and of events only.
async fn events_expire(api: Api) {
    let path = "/api/v1/namespaces/default/events";
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}, "type": "Normal"});
    api.ok(&format!("POST {path}"), event).await;
    let expires = || api.server.view.store().get("/registry/events/default/e").unwrap().expires();
    let first = expires().expect("an event expires");
    let left = first.duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left.as_secs() > 3590 && left.as_secs() <= 3600, "{left:?}");
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    api.ok(&format!("PATCH {path}/e"), json!({"count": 2})).await;
    assert!(expires().expect("an event still expires") > first);
    api.ok("POST /api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "kept"}})).await;
    assert!(api.server.view.store().get("/registry/configmaps/default/kept").unwrap().expires().is_none());
}
