//! From method and path to [`RequestInfo`], as upstream's `RequestInfoFactory`.

use apimachinery::selector::FieldSelector;
use http::Method;
use percent_encoding::percent_decode_str;

use super::query::Query;
use crate::request::RequestInfo;

/// Subresources of `namespaces` itself; every other word there is a resource inside the namespace.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// Reads what the request is about. Never fails: an unknown path is a non-resource request.
pub fn request_info(method: &Method, path: &str, query: &Query) -> RequestInfo {
    let mut info =
        RequestInfo { path: path.to_owned(), verb: method.as_str().to_ascii_lowercase(), ..RequestInfo::default() };
    // As upstream: slashes around the path do not count, empty segments inside it do.
    let trimmed = path.trim_matches('/');
    let decoded: Vec<String> =
        trimmed.split('/').map(|s| percent_decode_str(s).decode_utf8_lossy().into_owned()).collect();
    let mut parts: &[String] = &decoded;
    match parts {
        [api, version, rest @ ..] if api == "api" && !rest.is_empty() => {
            info.version = version.clone();
            parts = rest;
        }
        [apis, group, version, rest @ ..] if apis == "apis" && !rest.is_empty() => {
            info.group = group.clone();
            info.version = version.clone();
            parts = rest;
        }
        _ => return info,
    }
    info.is_resource = true;
    info.verb = match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
    .to_owned();

    let mut watch_path = false;
    if let [first, rest @ ..] = parts
        && first == "watch"
        && !rest.is_empty()
    {
        watch_path = true;
        parts = rest;
    }
    if let [first, namespace, rest @ ..] = parts
        && first == "namespaces"
    {
        info.namespace = namespace.clone();
        let own = rest.first().is_none_or(|next| NAMESPACE_SUBRESOURCES.contains(&next.as_str()));
        info.is_namespace_itself = own;
        if !own {
            parts = rest;
        }
    }
    if let Some(resource) = parts.first() {
        info.resource = resource.clone();
    }
    info.name = parts.get(1).cloned().unwrap_or_default();
    info.subresource = parts.get(2).cloned().unwrap_or_default();
    // What follows the subresource is kept as it was sent: a proxied path must not be decoded and encoded again.
    info.rest = raw_rest(path, decoded.len() - parts.len() + 3);

    // Only collections are watched by a parameter: on a named object, or a proxied path, `watch` is somebody else's.
    let watched = watch_path && info.subresource.is_empty() || info.name.is_empty() && query.flag("watch");
    if info.verb == "get" && watched {
        info.verb = "watch".to_owned();
    } else if info.verb == "get" && info.name.is_empty() {
        info.verb = "list".to_owned();
    } else if info.verb == "delete" && info.name.is_empty() {
        info.verb = "deletecollection".to_owned();
    }
    if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
        select_fields(&mut info, query);
    }
    info
}

/// Authorisation looks at the field selector; one that demands a name makes this a request for that name, as upstream.
fn select_fields(info: &mut RequestInfo, query: &Query) {
    info.field_selector = query.get("fieldSelector").unwrap_or_default().to_owned();
    let Ok(selector) = FieldSelector::parse(&info.field_selector) else { return };
    if info.name.is_empty()
        && let Some(name) = selector.required_value("metadata.name")
    {
        info.name = name.to_owned();
    }
}

fn raw_rest(path: &str, skip: usize) -> String {
    let mut rest = path.trim_start_matches('/');
    for _ in 0..skip {
        match rest.split_once('/') {
            Some((_, tail)) => rest = tail,
            None => return String::new(),
        }
    }
    rest.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, uri: &str, expected: &str) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let i = request_info(&method, path, &Query::parse(query));
        let got = format!(
            "{} {}|{}|{}|{}|{}|{}|{}",
            i.verb, i.group, i.version, i.namespace, i.resource, i.name, i.subresource, i.rest
        );
        assert_eq!(got, expected, "{uri}");
    }

    #[test]
    fn paths() {
        check(Method::GET, "/api/v1/pods", "list |v1||pods|||");
        check(Method::GET, "/api/v1/namespaces", "list |v1||namespaces|||");
        check(Method::GET, "/api/v1/namespaces/a", "get |v1|a|namespaces|a||");
        check(Method::GET, "/api/v1/namespaces/a/pods/x?watch=1", "get |v1|a|pods|x||");
        check(Method::GET, "/api/v1/namespaces/a/pods/x/proxy/?watch=1", "get |v1|a|pods|x|proxy|");
        check(Method::PUT, "/api/v1/namespaces/a/finalize", "update |v1|a|namespaces|a|finalize|");
        check(Method::GET, "/api/v1/namespaces/a/pods?watch=1", "watch |v1|a|pods|||");
        check(Method::GET, "/api/v1/watch/namespaces/a/pods/x", "watch |v1|a|pods|x||");
        check(Method::DELETE, "/apis/apps/v1/namespaces/a/deployments", "deletecollection apps|v1|a|deployments|||");
        check(Method::GET, "/api/v1/namespaces/a/pods/x/proxy/b%2Fc/d", "get |v1|a|pods|x|proxy|b%2Fc/d");
        check(Method::GET, "/api/v1/namespaces/a/pods/x/proxy//b//c/", "get |v1|a|pods|x|proxy|/b//c/");
        check(Method::GET, "//api/v1/pods/", "list |v1||pods|||");
        check(Method::GET, "/api//v1/pods", "get |||v1|pods||");
        check(Method::GET, "/", "get ||||||");
        check(Method::GET, "/api/v1/nodes/n/proxy/", "get |v1||nodes|n|proxy|");
        check(Method::GET, "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list |v1||pods|x||");
        check(Method::GET, "/apis/apps/v1", "get ||||||");
        check(Method::POST, "/api/v1/namespaces/a/pods/x/binding", "create |v1|a|pods|x|binding|");
    }
}
