//! A corpus, sent to a server or to two at once.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::corpus::{Corpus, Mark, Request};
use crate::target::Target;
use crate::versions::Versions;

/// What every corpus file begins from: its namespace, with the account that pods run as.
async fn prepare(corpus: &Corpus, target: &mut Target) {
    let name = &corpus.name;
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts");
    for (path, object) in [
        ("/api/v1/namespaces".to_owned(), json!({"metadata": {"name": name}})),
        (account, json!({"metadata": {"name": "default"}})),
    ] {
        let answer = target.send("POST", &path, "application/json", &object).await;
        assert_eq!(answer.code, 201, "{path}: {}", answer.body);
    }
}

/// The last state of each object that was answered, by path.
#[derive(Default)]
struct Seen(HashMap<String, Value>);

impl Seen {
    /// What the answer is told relative to: what was sent, or for a patch, the object before.
    fn before(&self, request: &Request) -> Value {
        match request.method {
            "POST" | "PUT" => request.body.clone(),
            _ => self.0.get(object_path(&request.path)).cloned().unwrap_or_else(|| json!({})),
        }
    }

    fn answered(&mut self, request: &Request, answer: &Answer) {
        if answer.code >= 300 || request.path.contains("dryRun") || answer.body["kind"] == "Status" {
            return;
        }
        let mut path = object_path(&request.path).to_owned();
        if request.method == "POST" {
            path = format!("{path}/{}", answer.body["metadata"]["name"].as_str().unwrap_or_default());
        }
        self.0.insert(path, answer.body.clone());
    }
}

fn object_path(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or(path);
    ["/status", "/scale", "/ephemeralcontainers", "/resize", "/approval", "/finalize"]
        .iter()
        .find_map(|part| path.strip_suffix(part))
        .unwrap_or(path)
}

/// All answers of a server, as a golden file has them.
pub async fn golden(corpus: &Corpus, target: &mut Target) -> String {
    prepare(corpus, target).await;
    let mut seen = Seen::default();
    let mut text = String::new();
    for request in &corpus.requests {
        let answer = target.answer(request).await;
        let _ = writeln!(text, "> {}\n{}", request.source, answer.written(&seen.before(request)));
        seen.answered(request, &answer);
    }
    text
}

/// The requests of which two golden files say something else.
pub fn difference(name: &str, known: &str, found: &str) -> String {
    let blocks = |text: &str| -> Vec<(String, String)> {
        let text = format!("\n{text}");
        let parts = text.split("\n> ").skip(1).map(|part| part.split_once('\n').unwrap_or((part, "")));
        parts.map(|(source, answer)| (source.to_owned(), answer.trim_end().to_owned())).collect()
    };
    let (known, found) = (blocks(known), blocks(found));
    let mut told = String::new();
    let nothing = (String::new(), String::new());
    for index in 0..known.len().max(found.len()) {
        let (known, found) = (known.get(index).unwrap_or(&nothing), found.get(index).unwrap_or(&nothing));
        if known.0 != found.0 {
            let _ = writeln!(told, "{name}: request {index} is {:?}, but recorded is {:?}", found.0, known.0);
            break;
        }
        if known.1 != found.1 {
            let _ = writeln!(told, "{name}: {}\n--- golden\n{}\n+++ answered\n{}\n", known.0, known.1, found.1);
        }
    }
    told
}

/// How many answers of two servers are the same.
#[derive(Default)]
pub struct Outcome {
    requests: usize,
    equal: usize,
    newer: usize,
    gaps: usize,
    unlike: usize,
    /// What is not as the corpus says, for people.
    pub told: String,
}

impl Outcome {
    pub fn row(&self, name: &str) -> String {
        let Outcome { requests, equal, newer, gaps, unlike, .. } = self;
        format!("{name:32} {requests:8} {equal:8} {newer:8} {gaps:8} {unlike:8}")
    }

    pub fn add(&mut self, other: &Outcome) {
        self.requests += other.requests;
        self.equal += other.equal;
        self.newer += other.newer;
        self.gaps += other.gaps;
        self.unlike += other.unlike;
    }

    fn count(&mut self, request: &Request, same: bool, told: impl Fn() -> String) {
        self.requests += 1;
        let wrong = match (&request.mark, same) {
            (Mark::None, true) => return self.equal += 1,
            (Mark::Since(_), false) => return self.newer += 1,
            (Mark::Gap(_), false) => return self.gaps += 1,
            (Mark::None, false) => {
                self.unlike += 1;
                told()
            }
            (mark, true) => {
                self.equal += 1;
                format!("{}\n  is answered alike, though marked {mark:?}\n", request.source)
            }
        };
        self.told += &wrong;
    }
}

/// Asks both the same and compares, answer by answer. `versions` is what `theirs`, an older server, cannot know.
pub async fn beside(corpus: &Corpus, versions: &Versions, ours: &mut Target, theirs: &mut Target) -> Outcome {
    prepare(corpus, ours).await;
    prepare(corpus, theirs).await;
    let mut outcome = Outcome::default();
    let mut seen = Seen::default();
    for request in &corpus.requests {
        let (mut our, mut their) = (ours.answer(request).await, theirs.answer(request).await);
        seen.answered(request, &our);
        // Before v1.21 nothing but an old API version was warned of.
        our.warnings.clear();
        their.warnings.clear();
        our.body = versions.older(our.body, &corpus.newer);
        their.body = versions.older(versions.reworded(their.body), &corpus.newer);
        let before = versions.older(seen.before(request), &corpus.newer);
        outcome.count(request, our == their, || {
            let (our, their) = (our.written(&before), their.written(&before));
            format!("{}: {}\n--- upstream\n{their}+++ ours\n{our}\n", corpus.name, request.source)
        });
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_answer_is_told_and_an_equal_one_is_not() {
        let known = "> GET /a\n200\n\n> GET /b\n404\n";
        assert_eq!(difference("n", known, known), "");
        let told = difference("n", known, "> GET /a\n200\n\n> GET /b\n403\n");
        assert!(told.contains("GET /b\n--- golden\n404\n+++ answered\n403"), "{told}");
        assert!(difference("n", known, "> GET /a\n200\n").contains("recorded is \"GET /b\""));
        assert!(!difference("n", "", known).is_empty());
    }

    #[test]
    fn marks_are_held_to() {
        let request = |mark: Mark| Request {
            source: "GET /a".to_owned(),
            method: "GET",
            media: "",
            path: String::new(),
            body: Value::Null,
            managed: false,
            mark,
        };
        let count = |mark: Mark, same: bool| {
            let mut outcome = Outcome::default();
            outcome.count(&request(mark), same, || "told".to_owned());
            (outcome.equal, outcome.newer, outcome.gaps, outcome.unlike, !outcome.told.is_empty())
        };
        assert_eq!(count(Mark::None, true), (1, 0, 0, 0, false));
        assert_eq!(count(Mark::None, false), (0, 0, 0, 1, true));
        assert_eq!(count(Mark::Since("1.30".to_owned()), false), (0, 1, 0, 0, false));
        assert_eq!(count(Mark::Gap("x".to_owned()), false), (0, 0, 1, 0, false));
        assert_eq!(count(Mark::Since("1.30".to_owned()), true), (1, 0, 0, 0, true));
    }
}
