use std::sync::Arc;

use kube_cel::cel::Value as CelValue;
use serde_json::json;

use super::{Expression, authorizer, from_json};
use crate::authz::Authorizer;
use crate::object::ObjectStore;
use crate::request::UserInfo;
use crate::view::View;

fn test(source: &str, object: serde_json::Value) -> Result<bool, String> {
    Expression::compile(source, &["object", "oldObject"])?
        .test(&[("object", from_json(&object)), ("oldObject", CelValue::Null)])
}

#[test]
fn objects_are_maps_and_functions_are_kubernetes() {
    let pod =
        json!({"metadata": {"name": "web", "labels": {"app.kubernetes.io/name": "x"}}, "spec": {"n": 3, "l": [1, 2]}});
    for source in [
        "object.metadata.name == 'web'",
        "object.spec.n > 2 && object.spec.l.exists(i, i == 2)",
        "oldObject == null && !has(object.spec.missing)",
        "object.metadata.labels['app.kubernetes.io/name'] == 'x'",
        "quantity('1Gi').isGreaterThan(quantity('1Mi'))",
        "object.metadata.name.matches('^w.b$')",
        "sets.contains(object.spec.l, [1])",
    ] {
        assert_eq!(test(source, pod.clone()), Ok(true), "{source}");
    }
    assert_eq!(test("object.spec.missing == 1", pod.clone()), Err("no such key: missing".to_owned()));
    assert_eq!(test("object.spec.n", pod), Err("expected a bool, got int".to_owned()));
}

#[test]
fn what_does_not_compile() {
    let error = |source: &str| Expression::compile(source, &["object"]).unwrap_err();
    let unreadable = error("... [] bad expression");
    assert!(unreadable.starts_with("ERROR: <input>:1:2: Syntax error: "), "{unreadable}");
    assert!(unreadable.ends_with("\n | ... [] bad expression\n | .^"), "{unreadable}");
    assert_eq!(
        error("object.a == nothing.b"),
        "ERROR: <input>:1:13: undeclared reference to 'nothing' (in container '')\n | object.a == nothing.b\n | ............^"
    );
}

#[test]
fn the_authorizer_is_asked() {
    let view = View::new(ObjectStore::in_memory(store::Options::default()));
    let rules = Authorizer::new(view);
    let outcome = |groups: &[&str], source: &str| {
        let user = Arc::new(UserInfo::new("someone", groups));
        Expression::compile(source, &["authorizer"]).unwrap().test(&[("authorizer", authorizer(&rules, &user))])
    };
    let source = "authorizer.group('apps').resource('deployments').namespace('a').name('x').check('get').allowed()";
    assert_eq!(outcome(&["system:masters"], source), Ok(true));
    assert_eq!(outcome(&[], source), Ok(false));
    let other = "authorizer.serviceAccount('a', 'b').path('/healthz').check('get').allowed()";
    assert_eq!(outcome(&["system:masters"], other), Ok(false));
    assert!(outcome(&[], "authorizer.group('').check('get').allowed()").is_err());
}
