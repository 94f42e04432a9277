//! Syntax: what texts mean, what is refused and where, and that no text is too much.

use proptest::prelude::*;

use crate::parse;

#[track_caller]
fn means(source: &str, tree: &str) {
    match parse(source) {
        Ok(ast) => assert_eq!(ast.to_string(), tree, "{source}"),
        Err(why) => panic!("{source}: {why}"),
    }
}

#[track_caller]
fn refused(source: &str, error: &str) {
    match parse(source) {
        Ok(ast) => panic!("{source} became {ast}"),
        Err(why) => assert_eq!(why.to_string(), error, "{source}"),
    }
}

#[test]
fn literals() {
    for (source, tree) in [
        ("1", "1"),
        ("0x1F", "31"),
        ("-0x1F", "-31"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("18446744073709551615u", "18446744073709551615u"),
        ("0xFFu", "255u"),
        ("1.5e3", "1500.0"),
        (".5", "0.5"),
        ("- 1", "-1"),
        ("true", "true"),
        ("null", "null"),
        (r#"'a"b'"#, r#""a\"b""#),
        (r"r'\n'", r#""\\n""#),
        (r"'\x41\101\u00e9\U0001f431'", "\"AA\u{e9}\u{1f431}\""),
        ("'''two\nlines'''", r#""two\nlines""#),
        ("'''windows\r\n'''", r#""windows\n""#),
        (r"b'\xff\377é'", r#"b"\xff\xff\xc3\xa9""#),
        (r"bR'\xff'", r#"b"\\xff""#),
    ] {
        means(source, tree);
    }
}

#[test]
fn operators_bind_as_in_cel() {
    for (source, tree) in [
        ("a + b * c - d", "_-_(_+_(a, _*_(b, c)), d)"),
        ("a < b == c", "_==_(_<_(a, b), c)"),
        ("a in b && !c", "_&&_(@in(a, b), !_(c))"),
        ("a || b && c", "_||_(a, _&&_(b, c))"),
        ("a ? b : c ? d : e", "_?_:_(a, b, _?_:_(c, d, e))"),
        ("!!a", "a"),
        ("--a", "a"),
        ("-a", "-_(a)"),
        ("1-2", "_-_(1, 2)"),
        ("-1.abs()", "-1.abs()"),
        ("a.b[c].d(e)", "_[_](a.b, c).d(e)"),
        (".a.b", ".a.b"),
        ("a && b && c && d", "_&&_(_&&_(a, b), _&&_(c, d))"),
        ("a.?b[?0]", "_[?_](_?._(a, \"b\"), 0)"),
        ("[1, ?a, 2,]", "[1, ?a, 2]"),
        ("[,]", "[]"),
        ("{'a': 1, ?'b': c,}", "{\"a\": 1, ?\"b\": c}"),
        ("a.B{c: 1, ?d: e}", "a.B{c: 1, ?d: e}"),
        ("a // and nothing more", "a"),
    ] {
        means(source, tree);
    }
}

#[test]
fn macros_are_written_out() {
    for (source, tree) in [
        ("has(a.b)", "has(a.b)"),
        (
            "l.all(x, x > 0)",
            "fold(x in l; @result = true; @not_strictly_false(@result); @result = _&&_(@result, _>_(x, 0)); @result)",
        ),
        (
            "l.exists(i, v, i == v)",
            "fold(i, v in l; @result = false; @not_strictly_false(!_(@result)); @result = _||_(@result, _==_(i, v)); @result)",
        ),
        (
            "l.exists_one(x, x)",
            "fold(x in l; @result = 0; true; @result = _?_:_(x, _+_(@result, 1), @result); _==_(@result, 1))",
        ),
        ("l.map(x, x.y)", "fold(x in l; @result = []; true; @result = _+_(@result, [x.y]); @result)"),
        ("l.filter(x, x)", "fold(x in l; @result = []; true; @result = _?_:_(x, _+_(@result, [x]), @result); @result)"),
        (
            "m.transformMap(k, v, v)",
            "fold(k, v in m; @result = {}; true; @result = cel.@mapInsert(@result, k, v); @result)",
        ),
        (
            "a.optMap(v, v + 1)",
            "_?_:_(a.hasValue(), optional.of(fold(#unused in []; v = a.value(); false; v = v; _+_(v, 1))), optional.none())",
        ),
        ("has(a, b)", "has(a, b)"),
        ("map(a, b)", "map(a, b)"),
    ] {
        means(source, tree);
    }
}

#[test]
fn faults_are_shown_where_they_are() {
    refused("a.b &&\n  has(c)", "ERROR: <input>:2:7: invalid argument to has() macro\n |   has(c)\n | ......^");
    refused("'é' + while", "ERROR: <input>:1:7: reserved identifier: while\n | 'é' + while\n | .\u{ff0e}....^");
    refused("a.map(1, 2)", "ERROR: <input>:1:7: argument is not an identifier\n | a.map(1, 2)\n | ......^");
    refused("9223372036854775808", "ERROR: <input>:1:1: invalid int literal\n | 9223372036854775808\n | ^");
    refused(
        "1 + $",
        "ERROR: <input>:1:5: Syntax error: token recognition error at: '$'\n | 1 + $\n | ....^\nERROR: <input>:1:6: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 + $\n | .....^",
    );
    for source in [
        "",
        "a b",
        "(a",
        "[a",
        "{a}",
        "a.",
        "a ? b",
        "'abc",
        "1 2",
        "a.`b`",
        "x.exists_one(a.b, c)",
        "'\\q'",
        "'\\ud800'",
        "f(a,)",
    ] {
        assert!(parse(source).is_err(), "{source}");
    }
}

#[test]
fn what_is_too_much_is_refused() {
    for (source, what) in [
        ("(".repeat(100_000), "expression recursion limit exceeded: 250"),
        ("[".repeat(90_000), "expression recursion limit exceeded: 250"),
        (format!("a{}", ".b".repeat(40_000)), "expression recursion limit exceeded: 250"),
        (format!("a{}", "+a".repeat(40_000)), "expression recursion limit exceeded: 250"),
        (format!("{}a", "a.map(x,".repeat(10_000)), "expression recursion limit exceeded: 250"),
        ("a".repeat(100_001), "expression code point size exceeds limit: size: 100001, limit 100000"),
    ] {
        let error = parse(&source).expect_err("too much").to_string();
        assert!(error.contains(what), "{}", &error[..error.len().min(300)]);
    }
    // Each of these doubles what is before it.
    let doubling = format!("a{}", ".optMap(x, x)".repeat(40));
    assert!(parse(&doubling).is_err());
    // Long, but flat.
    assert!(parse(&vec!["a"; 20_000].join("&&")).is_ok());
    assert!(parse(&format!("[{}]", vec!["1"; 20_000].join(","))).is_ok());
    // Signs are no nesting.
    assert!(parse(&format!("{}a", "!".repeat(50_000))).is_ok());
    assert!(parse(&format!("{}a{}", "(".repeat(200), ")".repeat(200))).is_ok());
}

/// Pieces of which texts are made that are CEL often enough to get past the first token.
pub(super) fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "b",
        "1",
        "2u",
        "0x",
        "1.5",
        "'s'",
        "b'\\x0'",
        "r\"",
        "'''",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ".",
        ",",
        "?",
        ":",
        "!",
        "-",
        "+",
        "*",
        " in ",
        "&&",
        "|",
        "==",
        "<",
        "`x`",
        "has(",
        "a.all(x,",
        "a.map(x,y,",
        ".optMap(v,",
        ".transformMapEntry(k,v,",
        "//",
        "\n",
        "\\",
        "é",
        "\u{1f431}",
        "while",
        "null",
        " ",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_is_answered(source in any::<String>()) {
        let _ = parse(&source);
    }

    #[test]
    fn any_pieces_are_answered(source in pieces()) {
        if let Err(why) = parse(&source) {
            prop_assert!(why.to_string().starts_with("ERROR: <input>:"));
        }
    }
}
