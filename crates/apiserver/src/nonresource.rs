//! Paths that are no resource: version, health, metrics, discovery, OpenAPI, the issuer's documents.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::openapi;
use apimachinery::status::{Result, StatusError};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest as _, Sha512};

use crate::discovery;
use crate::http::negotiate::{self, Encoding};
use crate::http::query::Query;
use crate::http::{Response, respond};
use crate::request::RequestInfo;
use crate::server::{ApiServer, header_text};

/// What `/version` tells.
#[derive(Clone, Debug)]
pub struct Version {
    /// `v1.37.0+coxswain…`
    pub git_version: String,
    pub git_commit: String,
    pub build_date: String,
}

/// A document that clients keep, and its digest, by which they ask whether theirs is still the newest.
#[derive(Clone)]
struct Document {
    body: Bytes,
    /// Upstream's: SHA-512 in capital hexadecimal digits, quoted.
    etag: HeaderValue,
}

impl Document {
    fn new(body: Bytes) -> Self {
        let digits: String = Sha512::digest(&body).iter().map(|byte| format!("{byte:02X}")).collect();
        let etag = HeaderValue::try_from(format!("\"{digits}\"")).unwrap_or_else(|_| HeaderValue::from_static(""));
        Document { body, etag }
    }

    /// The document, or that the client has it.
    fn answer(self, asked: &HeaderMap, content_type: &'static str) -> Response {
        let known = header_text(asked, header::IF_NONE_MATCH).unwrap_or_default();
        let is_known =
            known.split(',').any(|tag| tag.trim().trim_start_matches("W/").as_bytes() == self.etag.as_bytes());
        let mut response = match is_known {
            true => respond::bytes(304, content_type, Bytes::new()),
            false => respond::bytes(200, content_type, self.body),
        };
        response.headers_mut().insert(header::ETAG, self.etag);
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        response
    }
}

/// OpenAPI documents, made at first request and kept until the table changes.
#[derive(Default)]
pub struct Documents {
    cache: Mutex<HashMap<(u64, String), Document>>,
}

impl Documents {
    fn get(&self, generation: u64, name: &str, make: impl FnOnce() -> Option<Bytes>) -> Option<Document> {
        if let Some(found) = self.cache.lock().get(&(generation, name.to_owned())) {
            return Some(found.clone());
        }
        let made = Document::new(make()?);
        let mut cache = self.cache.lock();
        cache.retain(|(g, _), _| *g == generation);
        cache.insert((generation, name.to_owned()), made.clone());
        Some(made)
    }
}

pub async fn answer(server: &ApiServer, head: &Parts, info: &RequestInfo) -> Result<Response> {
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let segments: Vec<&str> = info.path.split('/').filter(|s| !s.is_empty()).collect();
    if head.method != http::Method::GET && head.method != http::Method::HEAD {
        return Err(StatusError::no_such_path());
    }
    let accept = header_text(&head.headers, header::ACCEPT);
    match segments.as_slice() {
        [] => Ok(paths(server)),
        [endpoint @ ("healthz" | "livez" | "readyz"), check @ ..] => {
            server.health.answer(endpoint, &check.join("/"), &query).ok_or_else(StatusError::no_such_path)
        }
        // Whoever joins checks its digest against the token.
        ["cacerts"] => Ok(respond::text(200, server.settings.serving_ca.clone())),
        ["version"] => Ok(respond::value(200, Encoding::Json, &version(&server.version))),
        ["metrics"] => Ok(respond::bytes(200, "text/plain; version=0.0.4; charset=utf-8", metrics(server))),
        ["debug", "api_priority_and_fairness", page] if server.gate.limits.enable_priority_and_fairness => {
            let details = query.get("includeRequestDetails").is_some_and(|text| !text.is_empty());
            let text = server.gate.fairness.dump(page, details).ok_or_else(StatusError::no_such_path)?;
            Ok(respond::text(200, text))
        }
        ["api"] => discovery::legacy_versions(server, accept),
        ["apis"] => discovery::groups(server, accept),
        ["apis", group] => discovery::group(server, group),
        ["api", version] => discovery::resources(server, "", version),
        ["apis", group, version] => discovery::resources(server, group, version),
        ["openapi", "v2"] => openapi_v2(server, &head.headers).await,
        ["openapi", "v3"] => openapi_v3_index(server).await,
        ["openapi", "v3", rest @ ..] => openapi_v3(server, &head.headers, rest),
        ["openid", "v1", "jwks"] => Ok(issuer_document("application/jwk-set+json", &server.authenticator.jwks())),
        [".well-known", "openid-configuration"] => {
            Ok(issuer_document("application/json", &server.authenticator.openid_configuration()))
        }
        _ => Err(StatusError::no_such_path()),
    }
}

fn metrics(server: &ApiServer) -> String {
    let mut text = crate::metrics::Text::default();
    server.gate.fairness.render(&mut text);
    if let Some(auditor) = server.audit.get() {
        auditor.render(&mut text);
    }
    text.into_string() + &server.metrics.render() + &server.webhooks.tally.render() + &server.policies.render_metrics()
}

fn issuer_document(content_type: &'static str, document: &Value) -> Response {
    respond::bytes(200, content_type, document.to_string())
}

fn version(version: &Version) -> Value {
    json!({
        "major": "1", "minor": "37", "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
        "gitVersion": version.git_version, "gitCommit": version.git_commit, "gitTreeState": "clean",
        "buildDate": version.build_date, "goVersion": "none (rust)", "compiler": "rustc",
        "platform": format!("linux/{}", go_arch(std::env::consts::ARCH)),
    })
}

/// Go's name of an architecture, which clients expect.
fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn paths(server: &ApiServer) -> Response {
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis"].map(str::to_owned).into();
    let table = server.table();
    for group in table.groups() {
        if group.name.is_empty() {
            continue;
        }
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
    }
    let rest =
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"];
    paths.extend(rest.map(str::to_owned));
    respond::value(200, Encoding::Json, &json!({ "paths": paths }))
}

async fn openapi_v2(server: &ApiServer, asked: &HeaderMap) -> Result<Response> {
    let table = server.table();
    let protobuf = negotiate::clauses(header_text(asked, header::ACCEPT).unwrap_or_default())
        .first()
        .is_some_and(|clause| clause.media.starts_with("application/com.github.proto-openapi.spec.v2"));
    let (name, content_type) =
        if protobuf { ("v2.pb", openapi::gnostic::CONTENT_TYPE) } else { ("v2.json", "application/json") };
    let others = server.aggregator.published().await;
    let make = || {
        let mut document = openapi::v2::document(&table, &server.version.git_version);
        others.merge_v2(&mut document);
        Some(if protobuf { openapi::gnostic::encode(&document).into() } else { Bytes::from(document.to_string()) })
    };
    // Both only grow, so no two states have the same sum.
    let generation = table.generation() + server.aggregator.generation();
    let document = server.documents.get(generation, name, make).ok_or_else(StatusError::no_such_path)?;
    Ok(document.answer(asked, content_type))
}

async fn openapi_v3_index(server: &ApiServer) -> Result<Response> {
    let table = server.table();
    let mut index = openapi::v3::index(&table);
    server.aggregator.published().await.merge_v3(&mut index);
    Ok(respond::value(200, Encoding::Json, &index))
}

fn openapi_v3(server: &ApiServer, asked: &HeaderMap, path: &[&str]) -> Result<Response> {
    let (group, version) = match path {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Err(StatusError::no_such_path()),
    };
    let table: Arc<_> = server.table();
    let make =
        || openapi::v3::document(&table, group, version, &server.version.git_version).map(|d| d.to_string().into());
    let document = server
        .documents
        .get(table.generation() + server.aggregator.generation(), &path.join("/"), make)
        .ok_or_else(StatusError::no_such_path)?;
    Ok(document.answer(asked, "application/json"))
}
