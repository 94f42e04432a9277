//! Paths and operations of rows, in a form that both dialects are written from.

use serde_json::{Map, Value, json};

use super::schemas::{Dialect, META, kind_name, list_name};
use crate::resource::{ResourceRow, Subresource, Verb};
use crate::schema::builtin;

const OBJECT_TYPES: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// A query parameter: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', then the output is pretty printed.");
const DRY_RUN: Parameter = ("dryRun", "string", "With 'All', every stage is processed but nothing is persisted.");
const FIELD_MANAGER: Parameter =
    ("fieldManager", "string", "The name of the actor that makes these changes. Required for apply patches.");
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What to do with unknown and duplicate fields: 'Ignore', 'Warn' (the default) or 'Strict'.",
);
const FORCE: Parameter = (
    "force",
    "boolean",
    "Apply patches only: take over fields that other managers own instead of failing with a conflict.",
);
const WATCH: Parameter = ("watch", "boolean", "Stream changes of the listed objects instead of listing them.");
const SELECT: [Parameter; 8] = [
    ("continue", "string", "The token of the previous answer, to get the next chunk of a list."),
    ("fieldSelector", "string", "Restrict the objects by their fields. Defaults to everything."),
    ("labelSelector", "string", "Restrict the objects by their labels. Defaults to everything."),
    ("limit", "integer", "The maximum number of objects in one answer; a continue token is set if there are more."),
    ("resourceVersion", "string", "Which versions of the objects may be served."),
    ("resourceVersionMatch", "string", "How resourceVersion is applied to list calls."),
    ("sendInitialEvents", "boolean", "Begin a watch with the present objects, ended by a bookmark."),
    ("timeoutSeconds", "integer", "A limit on the duration of the call, whether it is busy or not."),
];
const BOOKMARKS: Parameter = ("allowWatchBookmarks", "boolean", "Ask for watch events of type BOOKMARK.");
const DELETE: [Parameter; 4] = [
    ("gracePeriodSeconds", "integer", "The seconds before the object is deleted; zero means at once."),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Delete an object that cannot be read from storage.",
    ),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    (
        "propagationPolicy",
        "string",
        "Whether and how dependants are collected: 'Orphan', 'Background' or 'Foreground'.",
    ),
];
const LOG: [Parameter; 10] = [
    ("container", "string", "The container whose log is streamed. Defaults to the only one of the pod."),
    ("follow", "boolean", "Follow the log stream."),
    ("insecureSkipTLSVerifyBackend", "boolean", "Do not verify the kubelet's serving certificate."),
    ("limitBytes", "integer", "The number of bytes after which the output ends."),
    ("previous", "boolean", "The log of the previous, terminated container."),
    ("sinceSeconds", "integer", "Only lines newer than this many seconds."),
    ("stream", "string", "Which stream: 'All', 'Stdout' or 'Stderr'."),
    ("tailLines", "integer", "The number of lines from the end of the log."),
    ("timestamps", "boolean", "Begin each line with its time."),
    ("sinceTime", "string", "Only lines newer than this time."),
];
const EXEC: [Parameter; 6] = [
    ("command", "string", "The command to run, and its arguments. Not run within a shell."),
    ("container", "string", "The container. Defaults to the only one of the pod."),
    ("stderr", "boolean", "Redirect standard error."),
    ("stdin", "boolean", "Redirect standard input."),
    ("stdout", "boolean", "Redirect standard output."),
    ("tty", "boolean", "Allocate a terminal."),
];

/// What a request body is.
enum Body {
    None,
    /// A definition's name, and whether it must be sent.
    Object(String, bool),
    Patch,
}

struct Operation {
    method: &'static str,
    id: String,
    description: String,
    /// `x-kubernetes-action`
    action: &'static str,
    gvk: Value,
    tag: String,
    parameters: Vec<Parameter>,
    body: Body,
    /// Codes of success, all with the same answer: a definition's name, or plain text.
    codes: &'static [u16],
    answer: Option<String>,
    watchable: bool,
    /// Custom kinds have no protobuf form and no strategic merge.
    custom: bool,
}

/// Every path of one group-version: its discovery document and its rows.
pub fn group_version<'a>(
    group: &str,
    version: &str,
    rows: impl Iterator<Item = &'a ResourceRow>,
    dialect: Dialect,
    paths: &mut Map<String, Value>,
) {
    let names = Names::new(group, version);
    let discovery = Operation {
        method: "get",
        id: format!("get{}APIResources", names.id),
        description: "get available resources".into(),
        action: "",
        gvk: Value::Null,
        tag: names.tag.clone(),
        parameters: vec![],
        body: Body::None,
        codes: &[200],
        answer: Some(format!("{META}.APIResourceList")),
        watchable: false,
        custom: false,
    };
    write(paths, format!("{}/", names.base), &[], vec![discovery], dialect);
    for row in rows {
        row_paths(&names, row, dialect, paths);
    }
}

struct Names {
    /// `/api/v1`, `/apis/apps/v1`
    base: String,
    /// `CoreV1`, `AppsV1`, `RbacAuthorizationV1`: part of operation ids.
    id: String,
    /// `core_v1`, `rbacAuthorization_v1`
    tag: String,
}

impl Names {
    fn new(group: &str, version: &str) -> Self {
        let base = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let short = if group.is_empty() { "core" } else { group.trim_end_matches(".k8s.io") };
        let camel: String = short.split(['.', '-']).map(upper_first).collect();
        let mut tag = camel.clone();
        if let Some(first) = tag.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        Names { base, id: format!("{camel}{}", upper_first(version)), tag: format!("{tag}_{version}") }
    }
}

fn upper_first(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

fn row_paths(names: &Names, row: &ResourceRow, dialect: Dialect, paths: &mut Map<String, Value>) {
    let namespaced = row.is_namespaced();
    let collection = if namespaced {
        format!("{}/namespaces/{{namespace}}/{}", names.base, row.plural)
    } else {
        format!("{}/{}", names.base, row.plural)
    };
    let item = format!("{collection}/{{name}}");
    let in_namespace: &[&str] = if namespaced { &["namespace"] } else { &[] };
    let of_item: &[&str] = if namespaced { &["name", "namespace"] } else { &["name"] };

    let verbs = |wanted: &[Verb]| row.verbs.iter().copied().filter(|v| wanted.contains(v)).collect::<Vec<_>>();
    let of_collection = verbs(&[Verb::List, Verb::Create, Verb::DeleteCollection]);
    let operations = of_collection.into_iter().map(|verb| operation(names, row, verb, namespaced)).collect();
    write(paths, collection.clone(), in_namespace, operations, dialect);
    let of_one = verbs(&[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete]);
    write(
        paths,
        item.clone(),
        of_item,
        of_one.into_iter().map(|verb| operation(names, row, verb, namespaced)).collect(),
        dialect,
    );
    if namespaced && row.verbs.contains(&Verb::List) {
        let mut list = operation(names, row, Verb::List, false);
        list.id = format!("list{}{}ForAllNamespaces", names.id, row.kind);
        write(paths, format!("{}/{}", names.base, row.plural), &[], vec![list], dialect);
    }
    for sub in &row.subresources {
        let operations = sub.verbs.iter().map(|verb| subresource(names, row, sub, *verb)).collect();
        write(paths, format!("{item}/{}", sub.name), of_item, operations, dialect);
        if &*sub.name == "proxy" {
            let of_path: &[&str] = if namespaced { &["name", "namespace", "path"] } else { &["name", "path"] };
            let mut operations: Vec<_> = sub.verbs.iter().map(|verb| subresource(names, row, sub, *verb)).collect();
            operations.iter_mut().for_each(|operation| operation.id.push_str("WithPath"));
            write(paths, format!("{item}/proxy/{{path}}"), of_path, operations, dialect);
        }
    }
}

fn operation(names: &Names, row: &ResourceRow, verb: Verb, namespaced: bool) -> Operation {
    let kind = kind_name(row);
    let scope = if namespaced { "Namespaced" } else { "" };
    let named = |word: &str| format!("{word}{}{scope}{}", names.id, row.kind);
    let writes = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
    let base = Operation {
        method: "get",
        id: String::new(),
        description: String::new(),
        action: verb.as_str(),
        gvk: json!({"group": row.group, "version": row.version, "kind": row.kind}),
        tag: names.tag.clone(),
        parameters: vec![],
        body: Body::None,
        codes: &[200],
        answer: Some(kind.clone()),
        watchable: false,
        custom: row.custom,
    };
    match verb {
        Verb::Get => Operation { id: named("read"), description: format!("read the specified {}", row.kind), ..base },
        Verb::List | Verb::Watch => Operation {
            id: named("list"),
            description: format!("list or watch objects of kind {}", row.kind),
            action: "list",
            parameters: [BOOKMARKS].into_iter().chain(SELECT).chain([WATCH]).collect(),
            answer: Some(list_name(row)),
            watchable: true,
            ..base
        },
        Verb::Create => Operation {
            method: "post",
            id: named("create"),
            description: format!("create a {}", row.kind),
            action: "post",
            parameters: writes.to_vec(),
            body: Body::Object(kind, true),
            codes: &[200, 201, 202],
            ..base
        },
        Verb::Update => Operation {
            method: "put",
            id: named("replace"),
            description: format!("replace the specified {}", row.kind),
            action: "put",
            parameters: writes.to_vec(),
            body: Body::Object(kind, true),
            codes: &[200, 201],
            ..base
        },
        Verb::Patch => Operation {
            method: "patch",
            id: named("patch"),
            description: format!("partially update the specified {}", row.kind),
            parameters: writes.into_iter().chain([FORCE]).collect(),
            body: Body::Patch,
            codes: &[200, 201],
            ..base
        },
        Verb::Delete => Operation {
            method: "delete",
            id: named("delete"),
            description: format!("delete a {}", row.kind),
            parameters: [DRY_RUN].into_iter().chain(DELETE).collect(),
            body: Body::Object(format!("{META}.DeleteOptions"), false),
            codes: &[200, 202],
            // These kinds answer with the object itself.
            answer: Some(if returns_itself(row) { kind } else { format!("{META}.Status") }),
            ..base
        },
        Verb::DeleteCollection => Operation {
            method: "delete",
            id: format!("delete{}Collection{scope}{}", names.id, row.kind),
            description: format!("delete collection of {}", row.kind),
            parameters: [DRY_RUN].into_iter().chain(SELECT).chain(DELETE).collect(),
            body: Body::Object(format!("{META}.DeleteOptions"), false),
            answer: Some(format!("{META}.Status")),
            ..base
        },
    }
}

/// Kinds whose delete answers with the object, as upstream's `ReturnDeletedObject`.
fn returns_itself(row: &ResourceRow) -> bool {
    const KINDS: [&str; 10] = [
        "pods",
        "podtemplates",
        "services",
        "serviceaccounts",
        "persistentvolumes",
        "persistentvolumeclaims",
        "resourcequotas",
        "storageclasses",
        "volumeattachments",
        "csinodes",
    ];
    !row.custom && KINDS.contains(&&*row.plural)
}

fn subresource(names: &Names, row: &ResourceRow, sub: &Subresource, verb: Verb) -> Operation {
    let scope = if row.is_namespaced() { "Namespaced" } else { "" };
    let part: String = match &*sub.name {
        "ephemeralcontainers" => "Ephemeralcontainers".into(),
        name => upper_first(name),
    };
    let own_kind = *sub.kind == *row.kind && *sub.group == *row.group;
    let body = if own_kind {
        Some(kind_name(row))
    } else {
        let schema = builtin();
        schema.by_kind(&sub.group, &sub.version, &sub.kind).map(|id| schema.get(id).name.to_string())
    };
    let Some(body) = body else { return connect(names, row, sub, verb, &part) };
    let mut operation = operation(names, row, verb, row.is_namespaced());
    let word = match verb {
        Verb::Get => "read",
        Verb::Create => "create",
        Verb::Update => "replace",
        _ => "patch",
    };
    operation.id = format!("{word}{}{scope}{}{part}", names.id, row.kind);
    operation.description = match verb {
        Verb::Get => format!("read {} of the specified {}", sub.name, row.kind),
        Verb::Create => format!("create {} of a {}", sub.name, row.kind),
        Verb::Update => format!("replace {} of the specified {}", sub.name, row.kind),
        _ => format!("partially update {} of the specified {}", sub.name, row.kind),
    };
    operation.gvk = json!({"group": sub.group, "version": sub.version, "kind": sub.kind});
    operation.answer = Some(body.clone());
    if let Body::Object(name, _) = &mut operation.body {
        *name = body;
    }
    if &*sub.name == "log" {
        operation.parameters = LOG.to_vec();
        operation.answer = None;
    }
    operation
}

/// Subresources that are streams: exec, attach, port-forward, proxy.
fn connect(names: &Names, row: &ResourceRow, sub: &Subresource, verb: Verb, part: &str) -> Operation {
    let (method, word) = match verb {
        Verb::Create => ("post", "Post"),
        Verb::Update => ("put", "Put"),
        Verb::Patch => ("patch", "Patch"),
        Verb::Delete => ("delete", "Delete"),
        _ => ("get", "Get"),
    };
    let scope = if row.is_namespaced() { "Namespaced" } else { "" };
    Operation {
        method,
        id: format!("connect{}{word}{scope}{}{part}", names.id, row.kind),
        description: format!("connect {} requests to {} of {}", word.to_uppercase(), sub.name, row.kind),
        action: "connect",
        gvk: json!({"group": sub.group, "version": sub.version, "kind": sub.kind}),
        tag: names.tag.clone(),
        parameters: match &*sub.name {
            "exec" => EXEC.to_vec(),
            "attach" => EXEC[1..].to_vec(),
            "portforward" => vec![("ports", "integer", "The ports to forward.")],
            _ => vec![("path", "string", "The path of the request behind the proxy.")],
        },
        body: Body::None,
        codes: &[200],
        answer: None,
        watchable: false,
        custom: false,
    }
}

fn write(paths: &mut Map<String, Value>, path: String, parts: &[&str], operations: Vec<Operation>, dialect: Dialect) {
    if operations.is_empty() {
        return;
    }
    let item = paths.entry(path).or_insert_with(|| json!({}));
    if item.get("parameters").is_none() && !parts.is_empty() {
        let mut parameters: Vec<Value> = parts.iter().map(|name| path_parameter(name, dialect)).collect();
        parameters.push(query_parameter(&PRETTY, dialect));
        item["parameters"] = parameters.into();
    }
    for operation in operations {
        item[operation.method] = match dialect {
            Dialect::V2 => v2_operation(&operation),
            Dialect::V3 => v3_operation(&operation),
        };
    }
}

fn path_parameter(name: &str, dialect: Dialect) -> Value {
    let text = match name {
        "namespace" => "the namespace of the objects",
        "path" => "path to the resource",
        _ => "name of the object",
    };
    parameter(name, "path", "string", text, true, dialect)
}

fn query_parameter((name, ty, text): &Parameter, dialect: Dialect) -> Value {
    parameter(name, "query", ty, text, false, dialect)
}

fn parameter(name: &str, place: &str, ty: &str, text: &str, required: bool, dialect: Dialect) -> Value {
    let mut value = json!({"name": name, "in": place, "description": text});
    if required {
        value["required"] = true.into();
    }
    match dialect {
        Dialect::V2 => {
            value["type"] = ty.into();
            value["uniqueItems"] = true.into();
        }
        Dialect::V3 => value["schema"] = json!({"type": ty, "uniqueItems": true}),
    }
    value
}

fn extensions(operation: &Operation, value: &mut Value) {
    if !operation.action.is_empty() {
        value["x-kubernetes-action"] = operation.action.into();
        value["x-kubernetes-group-version-kind"] = operation.gvk.clone();
    }
}

fn produced(operation: &Operation) -> Vec<&'static str> {
    let mut types = if operation.answer.is_some() { OBJECT_TYPES.to_vec() } else { vec!["*/*"] };
    if operation.watchable {
        types.extend(["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"]);
    }
    types.retain(|ty| !(operation.custom && ty.contains("protobuf")));
    types
}

fn patched_with(operation: &Operation) -> &'static [&'static str] {
    if operation.custom { &PATCH_TYPES[..3] } else { &PATCH_TYPES }
}

fn reason(code: u16) -> &'static str {
    match code {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    }
}

fn v2_operation(operation: &Operation) -> Value {
    let reference = |name: &str| Dialect::V2.reference(name);
    let answer = operation.answer.as_deref().map_or_else(|| json!({"type": "string"}), reference);
    let mut responses: Map<String, Value> = operation
        .codes
        .iter()
        .map(|code| (code.to_string(), json!({"description": reason(*code), "schema": answer})))
        .collect();
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    let mut parameters: Vec<Value> = operation.parameters.iter().map(|p| query_parameter(p, Dialect::V2)).collect();
    let body = match &operation.body {
        Body::None => None,
        Body::Object(name, required) => Some((reference(name), *required)),
        Body::Patch => Some((reference(&format!("{META}.Patch")), true)),
    };
    if let Some((schema, required)) = body {
        let mut body = json!({"name": "body", "in": "body", "schema": schema});
        if required {
            body["required"] = true.into();
        }
        parameters.push(body);
    }
    let consumes: Vec<&str> =
        if matches!(operation.body, Body::Patch) { patched_with(operation).to_vec() } else { vec!["*/*"] };
    let mut value = json!({
        "description": operation.description, "operationId": operation.id, "tags": [operation.tag],
        "schemes": ["https"], "consumes": consumes, "produces": produced(operation), "responses": responses,
    });
    if !parameters.is_empty() {
        value["parameters"] = parameters.into();
    }
    extensions(operation, &mut value);
    value
}

fn v3_operation(operation: &Operation) -> Value {
    let content = |types: &[&str], schema: Value| -> Value {
        types.iter().map(|ty| ((*ty).to_owned(), json!({ "schema": schema }))).collect::<Map<_, _>>().into()
    };
    let answer =
        operation.answer.as_deref().map_or_else(|| json!({"type": "string"}), |name| Dialect::V3.reference(name));
    let answer = content(&produced(operation), answer);
    let mut responses: Map<String, Value> = operation
        .codes
        .iter()
        .map(|code| (code.to_string(), json!({"description": reason(*code), "content": answer})))
        .collect();
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    let mut value = json!({
        "description": operation.description, "operationId": operation.id, "tags": [operation.tag], "responses": responses,
    });
    if !operation.parameters.is_empty() {
        value["parameters"] = operation.parameters.iter().map(|p| query_parameter(p, Dialect::V3)).collect();
    }
    match &operation.body {
        Body::None => {}
        Body::Object(name, required) => {
            value["requestBody"] = json!({"content": content(&["*/*"], Dialect::V3.reference(name))});
            if *required {
                value["requestBody"]["required"] = true.into();
            }
        }
        Body::Patch => {
            let schema = Dialect::V3.reference(&format!("{META}.Patch"));
            value["requestBody"] = json!({"content": content(patched_with(operation), schema), "required": true});
        }
    }
    extensions(operation, &mut value);
    value
}
