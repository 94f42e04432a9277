//! Admission policies. After upstream's `test/e2e/apimachinery/validatingadmissionpolicy.go` and `test/integration/apiserver/cel`.

use serde_json::{Value, json};

use crate::harness::{Answer, Api, config_map, over_both};

over_both!(
    validations_refuse,
    variables_are_evaluated_when_they_are_read,
    params_come_from_objects,
    bindings_choose_and_act,
    policies_are_chosen,
    failures_follow_the_policy,
    expressions_see_the_request,
    policies_must_fit,
    params_must_be_readable_by_who_refers_to_them,
);

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// `matchConstraints` of config maps that are created or updated.
pub fn maps() -> Value {
    json!({"resourceRules": [
        {"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]})
}

fn policy(name: &str, validations: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"matchConstraints": maps(), "validations": validations}})
}

fn binding(name: &str, policy: &str, actions: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "spec": {"policyName": policy, "validationActions": actions}})
}

async fn install(api: &Api, policy: Value) {
    let name = policy["metadata"]["name"].as_str().unwrap().to_owned();
    api.ok(&format!("POST {ADMISSION}/validatingadmissionpolicies"), policy).await;
    bind(api, binding(&format!("{name}-binding"), &name, &["Deny"])).await;
}

async fn bind(api: &Api, binding: Value) {
    api.ok(&format!("POST {ADMISSION}/validatingadmissionpolicybindings"), binding).await;
}

async fn remove(api: &Api, name: &str) {
    api.ok(&format!("DELETE {ADMISSION}/validatingadmissionpolicies/{name}"), Value::Null).await;
    api.send(&format!("DELETE {ADMISSION}/validatingadmissionpolicybindings/{name}-binding"), Value::Null).await;
}

async fn create(api: &Api, name: &str, value: &str) -> Answer {
    api.send(&format!("POST {MAPS}"), config_map(name, value)).await
}

fn refused(answer: &Answer, policy: &str, why: &str) {
    let who = format!("ValidatingAdmissionPolicy '{policy}' with binding '{policy}-binding' denied request: {why}");
    assert_eq!((answer.code, &answer.body["reason"]), (422, &json!("Invalid")), "{}", answer.text);
    let name = answer.body["details"]["name"].as_str().unwrap();
    assert_eq!(answer.message(), format!("configmaps {name:?} is forbidden: {who}"));
    assert_eq!(answer.body["details"]["causes"][0]["message"], who);
}

async fn validations_refuse(api: Api) {
    let validations = json!([
        {"expression": "object.data.key != 'plain'"},
        {"expression": "object.data.key != 'worded'", "message": " no words "},
        {"expression": "object.data.key != 'made'", "messageExpression": "'no ' + object.data.key", "message": "unused"},
        {"expression": "object.data.key != 'forbidden'", "reason": "Forbidden", "message": "not allowed"},
        {"expression": "object.data.key != 'large'", "reason": "RequestEntityTooLarge"},
        {"expression": "object.data.key != 'lines'", "messageExpression": "'a\\nb'", "message": "instead"},
        {"expression": "!(object.data.key in ['broken', 'fine'])", "messageExpression": "string(object.nothing.at.all)", "message": "kept"},
    ]);
    // Without a binding nothing happens.
    api.ok(&format!("POST {ADMISSION}/validatingadmissionpolicies"), policy("a", validations.clone())).await;
    api.ok(&format!("POST {MAPS}"), config_map("before", "plain")).await;
    bind(&api, binding("a-binding", "a", &["Deny"])).await;
    refused(&create(&api, "x", "plain").await, "a", "failed expression: object.data.key != 'plain'");
    refused(&create(&api, "x", "worded").await, "a", "no words");
    refused(&create(&api, "x", "made").await, "a", "no made");
    refused(&create(&api, "x", "lines").await, "a", "instead");
    refused(&create(&api, "x", "broken").await, "a", "kept");
    let answer = create(&api, "x", "forbidden").await;
    assert_eq!((answer.code, &answer.body["reason"]), (403, &json!("Forbidden")));
    assert!(answer.message().ends_with("denied request: not allowed"), "{}", answer.text);
    assert_eq!(create(&api, "x", "large").await.code, 413);
    assert_eq!(create(&api, "x", "good").await.code, 201);
    // Updates by any verb, and dry runs.
    let patched = api.send(&format!("PATCH {MAPS}/x"), json!({"data": {"key": "plain"}})).await;
    refused(&patched, "a", "failed expression: object.data.key != 'plain'");
    let put = api.send(&format!("PUT {MAPS}/x"), config_map("x", "worded")).await;
    refused(&put, "a", "no words");
    refused(&api.apply(&format!("{MAPS}/y"), "me", config_map("y", "made")).await, "a", "no made");
    let tried = api.send(&format!("POST {MAPS}?dryRun=All"), config_map("z", "worded")).await;
    refused(&tried, "a", "no words");
    let generated = json!({"metadata": {"generateName": "g-"}, "data": {"key": "plain"}});
    let answer = api.send(&format!("POST {MAPS}"), generated).await;
    assert_eq!(answer.code, 422, "{}", answer.text);
    // Who may delete is not asked, and a policy that goes says nothing any more.
    api.ok(&format!("DELETE {MAPS}/x"), Value::Null).await;
    let metrics = api.send("GET /metrics", Value::Null).await.text;
    let series = "apiserver_validating_admission_policy_check_total{enforcement_action=\"deny\",error_type=\"invalid_error\",\
                  policy=\"a\",policy_binding=\"a-binding\"}";
    assert!(metrics.contains(series), "{metrics}");
    remove(&api, "a").await;
    assert_eq!(create(&api, "x", "plain").await.code, 201);
}

async fn variables_are_evaluated_when_they_are_read(api: Api) {
    let mut policy = policy(
        "vars",
        json!([
            {"expression": "object.data.key == 'skip' || variables.large"},
            {"expression": "object.data.key != 'touch' || variables.broken == 'x'", "message": "unused"},
        ]),
    );
    policy["spec"]["variables"] = json!([
        {"name": "size", "expression": "size(object.data.key)"},
        {"name": "broken", "expression": "object.data.nothing"},
        {"name": "large", "expression": "variables.size > 4"},
    ]);
    install(&api, policy).await;
    assert_eq!(create(&api, "a", "skip").await.code, 201);
    assert_eq!(create(&api, "b", "abcde").await.code, 201);
    refused(&create(&api, "c", "abc").await, "vars", "failed expression: object.data.key == 'skip' || variables.large");
    let broken = create(&api, "d", "touch").await;
    let why = "expression 'object.data.key != 'touch' || variables.broken == 'x'' resulted in error: composited variable \"broken\" \
               fails to evaluate: no such key: nothing";
    refused(&broken, "vars", why);
}

async fn params_come_from_objects(api: Api) {
    let param = |name: &str, word: &str| json!({"metadata": {"name": name, "labels": {"role": "param"}}, "data": {"word": word}});
    let mut by_name = policy(
        "byname",
        json!([{"expression": "object.data.key != params.data.word", "messageExpression": "'not ' + params.data.word"}]),
    );
    by_name["spec"]["paramKind"] = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    by_name["spec"]["matchConditions"] = json!([{"name": "no-params", "expression": "!has(object.data.word)"}]);
    let policies = format!("POST {ADMISSION}/validatingadmissionpolicies");
    api.ok(&policies, by_name).await;
    let mut bound = binding("byname-binding", "byname", &["Deny"]);
    bound["spec"]["paramRef"] = json!({"name": "one", "parameterNotFoundAction": "Deny"});
    bind(&api, bound).await;
    // What must be there and is not refuses everything that the policy matches.
    let missing = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    refused(&api.send(&format!("POST {MAPS}"), param("one", "x")).await, "byname", missing);
    let line = format!("PATCH {ADMISSION}/validatingadmissionpolicybindings/byname-binding");
    api.ok(&line, json!({"spec": {"paramRef": {"parameterNotFoundAction": "Allow"}}})).await;
    api.ok(&format!("POST {MAPS}"), param("one", "bad")).await;
    refused(&create(&api, "a", "bad").await, "byname", "not bad");
    assert_eq!(create(&api, "a", "good").await.code, 201);
    // The params of each namespace are its own, unless the binding names one.
    api.ok("POST /api/v1/namespaces", json!({"metadata": {"name": "other"}})).await;
    let elsewhere = "POST /api/v1/namespaces/other/configmaps";
    api.ok(elsewhere, config_map("a", "bad")).await;
    api.ok(&line, json!({"spec": {"paramRef": {"namespace": "default"}}})).await;
    assert_eq!(api.send(elsewhere, config_map("b", "bad")).await.code, 422);
    // All that a selector finds.
    api.ok(&line, json!({"spec": {"paramRef": {"name": null, "selector": {"matchLabels": {"role": "param"}}}}})).await;
    api.ok(&format!("POST {MAPS}"), param("two", "worse")).await;
    refused(&create(&api, "b", "worse").await, "byname", "not worse");
    refused(&create(&api, "b", "bad").await, "byname", "not bad");
    // A kind of the cluster's own scope, and one that nobody knows.
    let mut custom = policy("custom", json!([{"expression": "object.data.key.size() <= params.spec.most"}]));
    custom["spec"]["paramKind"] = json!({"apiVersion": "example.com/v1", "kind": "Limit"});
    remove(&api, "byname").await;
    api.ok(&policies, custom).await;
    let mut bound = binding("custom-binding", "custom", &["Deny"]);
    bound["spec"]["paramRef"] = json!({"name": "limit", "parameterNotFoundAction": "Allow"});
    bind(&api, bound).await;
    let unknown = create(&api, "c", "long-words").await;
    let why =
        "failed to configure policy: failed to find resource referenced by paramKind: 'example.com/v1, Kind=Limit'";
    let who = "configmaps \"c\" is forbidden: ValidatingAdmissionPolicy 'custom' denied request: ";
    assert_eq!(unknown.message(), format!("{who}{why}"), "{}", unknown.text);
    apiserver::serve_definitions(&api.server).await.unwrap();
    api.ok("POST /apis/apiextensions.k8s.io/v1/customresourcedefinitions", limits()).await;
    let limit =
        json!({"apiVersion": "example.com/v1", "kind": "Limit", "metadata": {"name": "limit"}, "spec": {"most": 5}});
    let path = "POST /apis/example.com/v1/limits";
    for _ in 0..100 {
        if api.send(path, limit.clone()).await.code == 201 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    refused(
        &create(&api, "c", "long-words").await,
        "custom",
        "failed expression: object.data.key.size() <= params.spec.most",
    );
    assert_eq!(create(&api, "c", "short").await.code, 201);
    let line = format!("PATCH {ADMISSION}/validatingadmissionpolicybindings/custom-binding");
    api.ok(&line, json!({"spec": {"paramRef": {"namespace": "default"}}})).await;
    let why = "failed to configure binding: paramRef.namespace must not be provided for a cluster-scoped `paramKind`";
    refused(&create(&api, "d", "x").await, "custom", why);
}

fn limits() -> Value {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"most": {"type": "integer"}}}}});
    json!({"metadata": {"name": "limits.example.com"}, "spec": {
        "group": "example.com", "scope": "Cluster", "names": {"plural": "limits", "kind": "Limit"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

async fn bindings_choose_and_act(api: Api) {
    api.ok(
        &format!("POST {ADMISSION}/validatingadmissionpolicies"),
        policy("p", json!([{"expression": "false", "message": "never"}])),
    )
    .await;
    let mut warns = binding("warns", "p", &["Warn", "Audit"]);
    warns["spec"]["matchResources"] = json!({"objectSelector": {"matchLabels": {"value": "warn"}}});
    bind(&api, warns).await;
    let mut denies = binding("denies", "p", &["Deny"]);
    denies["spec"]["matchResources"] = json!({"resourceRules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["*"], "resourceNames": ["special"]}]});
    bind(&api, denies).await;
    let warned = create(&api, "a", "warn").await;
    let warning = "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'warns': never\"";
    assert_eq!((warned.code, warned.warnings()), (201, vec![warning]), "{}", warned.text);
    let other = create(&api, "b", "other").await;
    assert_eq!((other.code, other.warnings().len()), (201, 0));
    assert_eq!(create(&api, "special", "other").await.code, 422);
    let metrics = api.send("GET /metrics", Value::Null).await.text;
    assert!(
        metrics.contains("check_total{enforcement_action=\"warn\"") && metrics.contains("enforcement_action=\"audit\""),
        "{metrics}"
    );
}

async fn policies_are_chosen(api: Api) {
    let never = json!([{"expression": "false", "message": "never"}]);
    let mut chosen = policy("chosen", never.clone());
    let constraints = &mut chosen["spec"]["matchConstraints"];
    constraints["objectSelector"] =
        json!({"matchExpressions": [{"key": "value", "operator": "NotIn", "values": ["free"]}]});
    constraints["namespaceSelector"] = json!({"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]});
    constraints["excludeResourceRules"] = json!([{"operations": ["*"], "apiGroups": [""], "apiVersions": ["*"],
        "resources": ["configmaps"], "resourceNames": ["excluded"]}]);
    chosen["spec"]["matchConditions"] = json!([
        {"name": "named", "expression": "object.metadata.name != 'unconditional'"},
        {"name": "late", "expression": "object.metadata.name == 'unconditional' || has(object.data)"},
    ]);
    install(&api, chosen).await;
    assert_eq!(create(&api, "a", "x").await.code, 422);
    for (name, value) in [("b", "free"), ("excluded", "x"), ("unconditional", "x")] {
        assert_eq!(create(&api, name, value).await.code, 201, "{name}");
    }
    api.ok("POST /api/v1/namespaces", json!({"metadata": {"name": "skipped", "labels": {"skip": "yes"}}})).await;
    api.ok("POST /api/v1/namespaces/skipped/configmaps", config_map("a", "x")).await;
    remove(&api, "chosen").await;
    // Another version of the same resource is matched, and shown in the version that the policy speaks of.
    let rules = json!([{"operations": ["CREATE"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"],
        "resources": ["horizontalpodautoscalers"]}]);
    let mut versions = policy(
        "versions",
        json!([{"expression": "object.spec.targetCPUUtilizationPercentage < 50 &&
        object.apiVersion == 'autoscaling/v1' && request.kind.version == 'v1' && request.requestKind.version == 'v2'"}]),
    );
    versions["spec"]["matchConstraints"] = json!({"resourceRules": rules});
    install(&api, versions).await;
    let scaler = |percent: u64| {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        json!({"metadata": {"name": "s"}, "spec": {"maxReplicas": 2,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]}})
    };
    let path = "POST /apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    assert_eq!(api.send(path, scaler(60)).await.code, 422);
    assert_eq!(api.send(path, scaler(40)).await.code, 201);
    let line = format!("PATCH {ADMISSION}/validatingadmissionpolicies/versions");
    api.ok(&line, json!({"spec": {"matchConstraints": {"matchPolicy": "Exact"}}})).await;
    let mut exact = scaler(60);
    exact["metadata"]["name"] = json!("t");
    api.ok(path, exact).await;
    remove(&api, "versions").await;
    // Connections.
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    api.ok("POST /api/v1/namespaces/default/pods", pod).await;
    let mut connects = policy(
        "connects",
        json!([{"expression": "false", "messageExpression": "request.operation + ' ' + request.name"}]),
    );
    connects["spec"]["matchConstraints"] = json!({"resourceRules": [
        {"operations": ["CONNECT"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/exec"]}]});
    install(&api, connects).await;
    let refusal = api.send("POST /api/v1/namespaces/default/pods/p/exec?command=ls", Value::Null).await;
    assert!(refusal.message().ends_with("denied request: CONNECT p"), "{}", refusal.text);
    remove(&api, "connects").await;
    // Policies and bindings themselves are nobody's business; all else is, deletions and subresources as well.
    let mut all = policy(
        "all",
        json!([{"expression": "request.namespace != 'default' && request.resource.resource != 'nodes'",
        "messageExpression": "request.operation + ' ' + request.resource.resource + '/' + request.subResource"}]),
    );
    all["spec"]["matchConstraints"] = json!({"resourceRules": [
        {"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]});
    install(&api, all).await;
    let deleted = api.send(&format!("DELETE {MAPS}/b"), Value::Null).await;
    refused(&deleted, "all", "DELETE configmaps/");
    let node = api.send("POST /api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    assert!(node.message().ends_with("denied request: CREATE nodes/"), "{}", node.text);
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}}});
    api.ok("POST /apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews", {
        let mut local = review;
        local["metadata"] = json!({"namespace": "default"});
        local["spec"]["user"] = json!("u");
        local
    })
    .await;
    api.ok(&format!("DELETE {ADMISSION}/validatingadmissionpolicies/all"), Value::Null).await;
}

async fn failures_follow_the_policy(api: Api) {
    let mut failing = policy("failing", json!([{"expression": "object.nothing.at.all == 1"}]));
    install(&api, failing.clone()).await;
    let why = "expression 'object.nothing.at.all == 1' resulted in error: no such key: nothing";
    refused(&create(&api, "a", "x").await, "failing", why);
    remove(&api, "failing").await;
    failing["spec"]["failurePolicy"] = json!("Ignore");
    install(&api, failing.clone()).await;
    assert_eq!(create(&api, "a", "x").await.code, 201);
    let metrics = api.send("GET /metrics", Value::Null).await.text;
    assert!(
        metrics.contains("enforcement_action=\"allow\",error_type=\"invalid_error\",policy=\"failing\""),
        "{metrics}"
    );
    remove(&api, "failing").await;
    // Conditions that fail; one that is false comes before.
    failing["spec"]["failurePolicy"] = json!("Fail");
    failing["spec"]["validations"] = json!([{"expression": "true"}]);
    failing["spec"]["matchConditions"] = json!([
        {"name": "broken", "expression": "object.nothing == 1"},
        {"name": "never", "expression": "object.data.key == 'x'"},
    ]);
    install(&api, failing).await;
    refused(
        &create(&api, "b", "x").await,
        "failing",
        "expression 'object.nothing == 1' resulted in error: no such key: nothing",
    );
    assert_eq!(create(&api, "b", "y").await.code, 201);
}

async fn expressions_see_the_request(api: Api) {
    let expressions = [
        "request.userInfo.username == 'tester' && 'system:masters' in request.userInfo.groups",
        "request.operation == 'CREATE' && request.name == 'a' && request.namespace == 'default' && !request.dryRun",
        "request.options.kind == 'CreateOptions'",
        "oldObject == null && namespaceObject.metadata.name == 'default' && namespaceObject.status.phase == 'Active'",
        "!has(namespaceObject.metadata.managedFields)",
        "authorizer.group('').resource('pods').namespace('default').check('get').allowed()",
        "!authorizer.serviceAccount('default', 'default').group('').resource('pods').check('get').allowed()",
        "authorizer.requestResource.check('delete').allowed()",
        "object.metadata.uid != ''",
    ];
    let validations: Vec<Value> = expressions.iter().map(|expression| json!({"expression": expression})).collect();
    install(&api, policy("sees", json!(validations))).await;
    let made = create(&api, "a", "x").await;
    assert_eq!(made.code, 201, "{}", made.text);
    remove(&api, "sees").await;
    install(
        &api,
        policy("updates", json!([{"expression": "oldObject == null || oldObject.data.key == object.data.key"}])),
    )
    .await;
    let refusal = api.send(&format!("PATCH {MAPS}/a"), json!({"data": {"key": "kept"}})).await;
    assert_eq!(refusal.code, 422, "{}", refusal.text);
}

async fn policies_must_fit(api: Api) {
    let policies = format!("POST {ADMISSION}/validatingadmissionpolicies");
    let faults = async |object: Value| api.send(&policies, object).await.message().to_owned();
    let empty = faults(json!({"metadata": {"name": "p"}, "spec": {}})).await;
    for expected in [
        "spec.matchConstraints: Required value",
        "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
    ] {
        assert!(empty.contains(expected), "{expected} not in {empty}");
    }
    let broken = faults(policy("p", json!([{"expression": "object.x = 1"}]))).await;
    assert!(
        broken.contains(
            "spec.validations[0].expression: Invalid value: \"object.x = 1\": compilation failed: ERROR: <input>:1:"
        ),
        "{broken}"
    );
    let unknown = faults(policy("p", json!([{"expression": "params.x"}]))).await;
    let expected = "undeclared reference to 'params' (in container '')";
    assert!(unknown.contains(expected), "{unknown}");
    // Only mutations make objects.
    let object = faults(policy("p", json!([{"expression": "Object{a: 1} != null"}]))).await;
    assert!(object.contains("undeclared reference to 'Object' (in container '')"), "{object}");
    let unauthorized = faults(policy("p", json!([{"expression": "true", "messageExpression": "authorizer"}]))).await;
    assert!(unauthorized.contains("spec.validations[0].messageExpression: Invalid value"), "{unauthorized}");
    let mut wrong = policy(
        "p",
        json!([{"expression": " ", "message": " ", "reason": "Odd"}, {"expression": "true", "message": "a\nb"}]),
    );
    wrong["spec"]["failurePolicy"] = json!("Maybe");
    wrong["spec"]["paramKind"] = json!({"apiVersion": "a/b/c", "kind": "-"});
    wrong["spec"]["variables"] = json!([{"name": "for", "expression": ""}]);
    wrong["spec"]["auditAnnotations"] = json!([{"key": "a b", "valueExpression": "'x'"}]);
    wrong["spec"]["matchConditions"] =
        json!([{"name": "", "expression": "true"}, {"name": "b", "expression": "variables.x"}]);
    wrong["spec"]["matchConstraints"]["resourceRules"] = json!([{"operations": ["*", "CREATE"], "apiGroups": [""],
        "apiVersions": [], "resources": ["pods", "*"], "resourceNames": ["a/b", "c", "c"]}]);
    let wrong = faults(wrong).await;
    for expected in [
        "spec.failurePolicy: Unsupported value: \"Maybe\": supported values: \"Fail\", \"Ignore\"",
        "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
        "spec.paramKind.kind: Invalid value: \"-\": may have mixed case, but should otherwise match: ",
        "spec.validations[0].expression: Required value: expression is not specified",
        "spec.validations[0].message: Invalid value: \" \": must be non-empty if specified",
        "spec.validations[0].reason: Unsupported value: \"Odd\"",
        "spec.validations[1].message: Invalid value: \"a\\nb\": must not contain line breaks",
        "spec.variables[0].name: Invalid value: \"for\": must be a valid CEL identifier",
        "spec.variables[0].expression: Required value: expression is not specified",
        "spec.auditAnnotations[0].key: Invalid value: \"p/a b\"",
        "spec.matchConditions[0].name: Required value",
        "spec.matchConditions[1].expression: Invalid value: \"variables.x\": compilation failed: ",
        "spec.matchConstraints.resourceRules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present",
        "spec.matchConstraints.resourceRules[0].apiVersions: Required value",
        "spec.matchConstraints.resourceRules[0].resourceNames[0]: Invalid value: \"a/b\"",
        "spec.matchConstraints.resourceRules[0].resourceNames[2]: Duplicate value: \"c\"",
    ] {
        assert!(wrong.contains(expected), "{expected} not in {wrong}");
    }
    let bindings = format!("POST {ADMISSION}/validatingadmissionpolicybindings");
    let mut bound = binding("b", "", &["Deny", "Warn", "Deny", "Shout"]);
    bound["spec"]["paramRef"] = json!({"name": "x", "selector": {}});
    let wrong = api.send(&bindings, bound).await.message().to_owned();
    for expected in [
        "spec.policyName: Required value",
        "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
        "spec.paramRef.parameterNotFoundAction: Required value",
        "spec.validationActions[2]: Duplicate value: \"Deny\"",
        "spec.validationActions[3]: Unsupported value: \"Shout\": supported values: \"Audit\", \"Deny\", \"Warn\"",
        "must not contain both Deny and Warn (repeating the same validation failure information",
    ] {
        assert!(wrong.contains(expected), "{expected} not in {wrong}");
    }
    let policies = format!("POST {ADMISSION}/mutatingadmissionpolicies");
    let mut mutating = json!({"metadata": {"name": "m"}, "spec": {"matchConstraints": maps(), "mutations": [
        {"patchType": "JSONPatch", "applyConfiguration": {"expression": "Object{}"}}, {"patchType": "Odd"}]}});
    mutating["spec"]["matchConstraints"]["resourceRules"][0]["operations"] = json!(["DELETE"]);
    let wrong = api.send(&policies, mutating).await.message().to_owned();
    for expected in [
        "spec.reinvocationPolicy: Required value",
        "spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch",
        "spec.mutations[0].applyConfiguration: Invalid value: \"{applyConfiguration}\": must not be specified when patchType is JSONPatch",
        "spec.mutations[1].patchType: Unsupported value: \"Odd\": supported values: \"ApplyConfiguration\", \"JSONPatch\"",
        "spec.matchConstraints.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"UPDATE\"",
    ] {
        assert!(wrong.contains(expected), "{expected} not in {wrong}");
    }
}

async fn params_must_be_readable_by_who_refers_to_them(api: Api) {
    let rbac = "POST /apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]}]);
    let grant = async |name: &str, rules: Value| {
        api.ok(&format!("{rbac}/clusterroles"), json!({"metadata": {"name": name}, "rules": rules})).await;
        let subjects = json!([{"kind": "User", "name": "author", "apiGroup": "rbac.authorization.k8s.io"}]);
        let role = json!({"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"});
        let binding = json!({"metadata": {"name": name}, "subjects": subjects, "roleRef": role});
        api.ok(&format!("{rbac}/clusterrolebindings"), binding).await;
    };
    grant("policies", rules).await;
    let author = async |line: String, object: Value| {
        let headers = [("content-type", "application/json"), ("impersonate-user", "author"), ("impersonate-uid", "7")];
        api.with(&line, &headers, object).await
    };
    let mut by_name = policy("p", json!([{"expression": "true"}]));
    by_name["spec"]["paramKind"] = json!({"apiVersion": "v1", "kind": "Secret"});
    let refused = author(format!("POST {ADMISSION}/validatingadmissionpolicies"), by_name.clone()).await;
    let why = "spec.paramKind: Forbidden: user &{author 7 [system:authenticated] map[]} must have \"get\" permission on all objects of the \
               referenced paramKind (kind=Secret, apiVersion=v1)";
    assert_eq!(refused.code, 422, "{}", refused.text);
    assert!(refused.message().ends_with(why), "{}", refused.text);
    api.ok(&format!("POST {ADMISSION}/validatingadmissionpolicies"), by_name).await;
    let mut bound = binding("b", "p", &["Deny"]);
    bound["spec"]["paramRef"] = json!({"name": "s", "namespace": "default", "parameterNotFoundAction": "Deny"});
    let refused = author(format!("POST {ADMISSION}/validatingadmissionpolicybindings"), bound.clone()).await;
    assert!(refused.message().contains("spec.paramRef: Forbidden: user get does not have"), "{}", refused.text);
    grant("secrets", json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}])).await;
    let made = author(format!("POST {ADMISSION}/validatingadmissionpolicybindings"), bound).await;
    assert_eq!(made.code, 201, "{}", made.text);
}
