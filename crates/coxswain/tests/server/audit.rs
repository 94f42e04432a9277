//! Flags about audit, and what the server leaves in the log when it stops.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::support::{CONFIG_MAPS, Site, config_map};

#[test]
fn requests_are_recorded_until_the_end() {
    let site = Site::new();
    let (policy, log) = (site.path("policy.yaml"), site.path("logs/audit.log"));
    let flags = [
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", log.display()),
        "--audit-log-mode=batch".to_owned(),
        "--audit-log-batch-max-size=1000".to_owned(),
        "--audit-log-batch-max-wait=1h".to_owned(),
        "--disable-agent".to_owned(),
    ];
    let words: Vec<&str> = flags.iter().map(String::as_str).collect();
    fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]\n").unwrap();
    let said = site.refused(&words);
    let why = "rules[0].level: Unsupported value: \"All\"";
    assert!(said.starts_with(&format!("coxswain: loading audit policy file: {why}")), "{said}");
    let rules = "rules:\n- {level: RequestResponse, userGroups: ['system:masters'], resources: [{resources: [configmaps]}]}\n\
                 - {level: Metadata, verbs: [create]}\n";
    fs::write(&policy, format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n{rules}"))
        .unwrap();
    let server = site.start(&words);
    let client = site.connect();
    assert_eq!(site.block_on(client.post(CONFIG_MAPS, &config_map("recorded", 10))).0, 201);
    assert!(server.stop().0.success());
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&log).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let own = events.iter().find(|event| event["objectRef"]["name"] == "recorded").unwrap();
    assert_eq!((&own["verb"], &own["stage"]), (&"create".into(), &"ResponseComplete".into()));
    assert_eq!(own["sourceIPs"], serde_json::json!(["127.0.0.1"]));
    assert_eq!(own["responseObject"]["data"]["d"], "xxxxxxxxxx");
    assert_eq!(own["user"]["groups"], serde_json::json!(["system:masters", "system:authenticated"]));
    // The cluster's own components are recorded like anybody.
    let controllers =
        |event: &&Value| event["user"]["username"].as_str().is_some_and(|name| name.starts_with("system:"));
    assert!(events.iter().any(|event| controllers(&event) && event["level"] == "Metadata"), "{text}");
}
