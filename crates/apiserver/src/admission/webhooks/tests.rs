use serde_json::json;

use super::outcome::denied;
use super::review;

fn answer(version: &str, review: serde_json::Value) -> String {
    match review::answer(version, "u", true, &review) {
        Ok(answer) => format!("{} {}", answer.allowed, String::from_utf8(answer.patch).unwrap()),
        Err(why) => why,
    }
}

#[test]
fn answers_must_be_whole() {
    let v1 = |response| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    assert_eq!(answer("v1", v1(json!({"uid": "u", "allowed": true}))), "true ");
    let patched = json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"});
    assert_eq!(answer("v1", v1(patched)), "true []");
    for (response, why) in [
        (json!(null), "webhook response was absent"),
        (json!({"uid": "x"}), "expected response.uid=\"u\", got \"x\""),
        (json!({"uid": "u", "patch": "W10="}), "webhook returned response.patch but not response.patchType"),
        (json!({"uid": "u", "patchType": "JSONPatch"}), "webhook returned response.patchType but not response.patch"),
        (
            json!({"uid": "u", "patch": "W10=", "patchType": "Merge"}),
            "webhook returned invalid response.patchType of \"Merge\"",
        ),
    ] {
        assert_eq!(answer("v1", v1(response)), why);
    }
    let old =
        json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {"allowed": true}});
    let why = "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1beta1, \
               Kind=AdmissionReview";
    assert_eq!(answer("v1", old.clone()), why);
    assert_eq!(answer("v1beta1", old), "true ");
}

#[test]
fn denials_are_worded_by_what_was_said() {
    let text = |status| {
        let error = denied("a.b.c", &status);
        format!("{} {} {}", error.code, error.reason, error.message)
    };
    assert_eq!(text(json!(null)), "400  admission webhook \"a.b.c\" denied the request without explanation");
    assert_eq!(
        text(json!({"code": 200, "reason": "Odd"})),
        "400 Odd admission webhook \"a.b.c\" denied the request: Odd"
    );
    let whole = json!({"code": 403, "reason": "Forbidden", "message": "no"});
    assert_eq!(text(whole), "403 Forbidden admission webhook \"a.b.c\" denied the request: no");
}
