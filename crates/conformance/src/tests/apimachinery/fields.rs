//! Field validation by the server: unknown and duplicate fields of built-in kinds and of custom resources.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-api-machinery] FieldValidation should create/apply a CR with unknown fields for CRD with no validation schema [Conformance]" => custom, &NO_SCHEMA;
    "[sig-api-machinery] FieldValidation should create/apply a valid CR for CRD with validation schema [Conformance]" => custom, &VALID;
    "[sig-api-machinery] FieldValidation should create/apply an invalid CR with extra properties for CRD with validation schema [Conformance]" => custom, &EXTRA;
    "[sig-api-machinery] FieldValidation should detect duplicates in a CR when preserving unknown fields [Conformance]" => custom, &DUPLICATES;
    "[sig-api-machinery] FieldValidation should detect unknown and duplicate fields of a typed object [Conformance]" => typed, "", "\"unknownField\": 1, \"replicas\": 2,", "strict decoding error: unknown field \"spec.unknownField\", duplicate field \"spec.replicas\"";
    "[sig-api-machinery] FieldValidation should detect unknown metadata fields in both the root and embedded object of a CR [Conformance]" => custom, &METADATA;
    "[sig-api-machinery] FieldValidation should detect unknown metadata fields of a typed object [Conformance]" => typed, "\"unknownMeta\": \"foo\",", "", "strict decoding error: unknown field \"metadata.unknownMeta\"";
}

const STRICT: [(&str, &str); 2] = [("fieldManager", "field-validation"), ("fieldValidation", "Strict")];

/// Creates a deployment with more fields than there are, which must be refused for exactly these.
async fn typed(cx: Arc<Cx>, metadata: &'static str, spec: &'static str, complaint: &'static str) -> Result<()> {
    let body = format!(
        r#"{{"apiVersion": "apps/v1", "kind": "Deployment",
          "metadata": {{"name": "dep", {metadata} "labels": {{"app": "test"}}}},
          "spec": {{{spec} "replicas": 3, "selector": {{"matchLabels": {{"app": "test"}}}},
            "template": {{"metadata": {{"labels": {{"app": "test"}}}},
              "spec": {{"containers": [{{"name": "main", "image": "example.com/none:1"}}]}}}}}}}}"#
    );
    let sent = cx.api(&kinds::DEPLOYMENT).send_text("POST", &[], &STRICT, "application/json", &body).await;
    let status = expect_failure(sent, 400, "a deployment with unknown or duplicate fields")?;
    ensure!(status.message.contains(complaint), "the complaint is {:?}, expected {complaint:?} in it", status.message);
    Ok(())
}

/// A definition, an object of it, and what is said about it.
struct Custom {
    /// The schema of the spec; none for a definition that takes anything.
    spec: Option<fn() -> Value>,
    /// Lines of the object's YAML: in the metadata, in the root, in the spec.
    metadata: &'static str,
    root: &'static str,
    in_spec: &'static str,
    /// Of these one must be in the answer; the object is taken where there is none.
    complaints: &'static [&'static str],
}

/// Fields of a spec as of a small job: a pattern and a list that is a map.
fn fields() -> Value {
    let port = json!({"type": "object", "required": ["containerPort", "protocol"], "properties": {
        "containerPort": {"type": "integer", "format": "int32"}, "hostIP": {"type": "string"},
        "hostPort": {"type": "integer", "format": "int32"}, "name": {"type": "string"}, "protocol": {"type": "string"},
    }});
    json!({
        "foo": {"type": "string"},
        "cronSpec": {"type": "string", "pattern": "^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$"},
        "ports": {
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
            "items": port,
        },
    })
}

fn closed() -> Value {
    json!({"type": "object", "properties": fields()})
}

fn preserving() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": fields()})
}

fn embedding() -> Value {
    let mut schema = preserving();
    schema["properties"]["template"] = json!({
        "type": "object", "x-kubernetes-embedded-resource": true,
        "properties": {
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": {"type": "object"},
        },
    });
    schema
}

static NO_SCHEMA: Custom = Custom { spec: None, metadata: "", root: "", in_spec: "  unknown: uk1\n", complaints: &[] };
static VALID: Custom = Custom { spec: Some(closed), metadata: "", root: "", in_spec: "  foo: foo1\n", complaints: &[] };
static EXTRA: Custom = Custom {
    spec: Some(closed),
    metadata: "",
    root: "unknownField: unknown\n",
    in_spec: "  foo: foo1\n",
    complaints: &[".unknownField: field not declared in schema"],
};
static METADATA: Custom = Custom {
    spec: Some(embedding),
    metadata: "  unknownMeta: unknown\n",
    root: "",
    in_spec: "  template:\n    apiVersion: foo/v1\n    kind: Sub\n    metadata:\n      unknownSubMeta: unknown\n      name: subobject\n  foo: foo1\n",
    complaints: &[
        ".spec.template.metadata.unknownSubMeta: field not declared in schema",
        ".metadata.unknownMeta: field not declared in schema",
    ],
};
static DUPLICATES: Custom = Custom {
    spec: Some(preserving),
    metadata: "",
    root: "",
    in_spec: "  unknown: uk1\n  foo: foo1\n  foo: foo2\n",
    complaints: &["line 10: key \"foo\" already set in map"],
};

async fn custom(cx: Arc<Cx>, row: &'static Custom) -> Result<()> {
    let kind = define(&cx, row.spec).await?;
    let (api, subject) = (cx.api(&kind), "mytest");
    let body = format!(
        "apiVersion: {}\nkind: {}\nmetadata:\n  name: {subject}\n{}  finalizers:\n  - conformance.example.com/finalizer\n{}spec:\n{}\
         \x20 cronSpec: \"* * * * */5\"\n  ports:\n  - name: x\n    containerPort: 80\n    protocol: TCP\n",
        kind.api_version(),
        kind.kind,
        row.metadata,
        row.root,
        row.in_spec,
    );
    let sent = api.send_text("PATCH", &[subject], &STRICT, "application/apply-patch+yaml", &body).await;
    let checked = judge(row, sent);
    // The finalizer must not keep the definition from going.
    let _ = api.patch(subject, Patch::Merge, &json!({"metadata": {"finalizers": null}})).await;
    checked
}

fn judge(row: &Custom, sent: Result<Value>) -> Result<()> {
    if row.complaints.is_empty() {
        let applied = sent?;
        expect(&applied, "/spec/cronSpec", "* * * * */5")?;
        return expect(&applied, "/spec/ports/0/containerPort", 80);
    }
    let error = match sent {
        Ok(_) => anyhow::bail!("taken, expected one of {:?}", row.complaints),
        Err(error) => error,
    };
    let Some(status) = failure(&error) else { return Err(error) };
    let fits = row.complaints.iter().any(|complaint| status.message.contains(complaint));
    ensure!(fits, "the complaint is {:?}, expected one of {:?} in it", status.message, row.complaints);
    Ok(())
}

/// A cluster-wide definition with two versions, and waits until it is served.
async fn define(cx: &Cx, spec: Option<fn() -> Value>) -> Result<Kind> {
    let (group, plural) = ("conformance.example.com", cx.unique("noxus"));
    let schema = match spec {
        Some(spec) => json!({"type": "object", "properties": {"spec": spec()}}),
        None => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    };
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}},
        })
    };
    let (singular, kind) = (format!("{plural}-one"), "WishIHadChosenNoxu");
    let kind_name = format!("{kind}{}", plural.replace('-', ""));
    let definition = json!({
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Cluster",
            "names": {"plural": plural, "singular": singular, "kind": kind_name, "listKind": format!("{kind_name}List")},
            "versions": [version("v1beta1", true), version("v1beta2", false)],
        },
    });
    cx.create_for_test(&kinds::CRD, &definition).await?;
    established(cx, &format!("{plural}.{group}")).await?;
    let kind = Kind::custom(group, "v1beta1", &kind_name, &plural, false);
    retry(SOON, "list of the new kind", async || cx.api(&kind).list(&[]).await).await?;
    Ok(kind)
}

/// Waits until a definition is served.
pub async fn established(cx: &Cx, definition: &str) -> Result<()> {
    let served = |object: &Value| when(holds(object, "Established"), || format!("status {}", at(object, "/status")));
    cx.api(&kinds::CRD).wait_one(definition, SOON, "established definition", served).await?;
    Ok(())
}
