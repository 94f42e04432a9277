//! Types of expressions, and what is told where they do not fit.

use std::collections::BTreeMap;

use crate::{Env, Fields, ObjectType, Type};

fn env() -> Env {
    let fields: BTreeMap<Box<str>, Type> = [
        ("name".into(), Type::String),
        ("count".into(), Type::Int),
        ("labels".into(), Type::map(Type::String, Type::String)),
    ]
    .into();
    let object = ObjectType { name: "Thing".into(), fields: Fields::Declared(fields.clone()) };
    Env::default()
        .with("self", Type::object("Thing", fields))
        .with("any", Type::Dyn)
        .with("s", Type::String)
        .with("i", Type::Int)
        .with("l", Type::list(Type::Int))
        .with("at", Type::Timestamp)
        .with_object(object)
}

#[test]
fn types_of_expressions() {
    for (source, ty) in [
        ("1 + 2", "int"),
        ("self.count > 1 && self.name.startsWith('a')", "bool"),
        ("self.labels['a']", "string"),
        ("self.labels.?a", "optional_type(string)"),
        ("self.labels[?'a'].orValue('b')", "string"),
        ("self.?labels.a", "optional_type(string)"),
        ("has(self.name)", "bool"),
        ("any.b.c", "dyn"),
        ("any + 1", "int"),
        ("any + any", "dyn"),
        ("[]", "list(dyn)"),
        ("[] + l", "list(int)"),
        ("{'a': []}", "map(string, list(dyn))"),
        ("l.map(x, [x])", "list(list(int))"),
        ("l.filter(x, x > 0)", "list(int)"),
        ("l.map(x, string(x)).exists(x, x == 'a')", "bool"),
        ("self.labels.all(k, v, k != v)", "bool"),
        ("l.all(n, v, n == v)", "bool"),
        ("l.transformMap(n, v, string(v))", "map(int, string)"),
        ("self.labels.transformList(k, v, k + v)", "list(string)"),
        ("self.labels.transformMapEntry(k, v, {v: k})", "map(string, string)"),
        ("at - duration('1h')", "timestamp"),
        ("at - at", "duration"),
        ("at.getHours('UTC')", "int"),
        ("i > 0 ? 'a' : 'b'", "string"),
        ("type(1)", "type(int)"),
        ("type(1) == int", "bool"),
        ("google.protobuf.Timestamp", "type(timestamp)"),
        ("null", "null"),
        ("self == null", "bool"),
        ("optional.of(1).optMap(v, v + 1)", "optional_type(int)"),
        ("optional.none().or(optional.of('a'))", "optional_type(string)"),
        ("Thing{name: 'a', ?count: optional.of(1)}", "Thing"),
        ("dyn('a') == 1", "bool"),
        ("1 < 2.5 && 1u >= 1", "bool"),
        ("size(l) + s.size()", "int"),
    ] {
        match env().compile(source) {
            Ok(checked) => assert_eq!(checked.result().to_string(), ty, "{source}"),
            Err(why) => panic!("{source}: {why}"),
        }
    }
}

#[test]
fn faults_are_told_in_cel_gos_words() {
    for (source, column, message) in [
        ("nothing", 1, "undeclared reference to 'nothing' (in container '')"),
        ("nothing(1)", 8, "undeclared reference to 'nothing' (in container '')"),
        ("1 + 'a'", 3, "found no matching overload for '_+_' applied to '(int, string)'"),
        ("s.contains(1)", 11, "found no matching overload for 'contains' applied to 'string.(int)'"),
        ("1 in s", 3, "found no matching overload for '@in' applied to '(int, string)'"),
        ("l == 'a'", 3, "found no matching overload for '_==_' applied to '(list(int), string)'"),
        ("self.labels[1]", 12, "found no matching overload for '_[_]' applied to '(map(string, string), int)'"),
        ("self.nothing", 5, "undefined field 'nothing'"),
        ("has(self.nothing)", 4, "undefined field 'nothing'"),
        ("s.field", 2, "type 'string' does not support field selection"),
        ("i && true", 3, "expected type 'bool' but found 'int'"),
        ("[1, 'a']", 5, "expected type 'int' but found 'string'"),
        (
            "i.all(x, true)",
            1,
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("Thing{name: 1}", 11, "expected type of field 'name' is 'string' but provided type is 'int'"),
        ("Thing{nothing: 1}", 14, "undefined field 'nothing'"),
        ("i ? 1 : 2", 3, "found no matching overload for '_?_:_' applied to '(int, int, int)'"),
    ] {
        match env().compile(source) {
            Ok(checked) => panic!("{source} is of type {}", checked.result()),
            Err(why) => {
                let first = why.to_string().lines().next().unwrap_or_default().to_owned();
                assert_eq!(first, format!("ERROR: <input>:1:{column}: {message}"), "{source}");
            }
        }
    }
}

#[test]
fn checking_is_bounded() {
    // Types that double with every step, and what is as deep as syntax may be.
    let doubling = format!("[1]{}", ".map(x, {x: x})".repeat(100));
    let error = env().compile(&doubling).expect_err("too large a type").to_string();
    assert!(error.contains("type has more than 1000 parts"), "{}", &error[..error.len().min(300)]);
    assert!(env().compile(&format!("{}1{}", "[".repeat(200), "]".repeat(200))).is_ok());
    assert!(env().compile(&format!("i{}", "+i".repeat(200))).is_ok());
    assert!(env().compile(&format!("l{}", ".map(x, x)".repeat(60))).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_pieces_are_checked(source in super::syntax::pieces()) {
        let _ = env().compile(&source);
    }
}
