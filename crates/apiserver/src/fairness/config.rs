//! FlowSchemas and PriorityLevelConfigurations, read from their objects.

use apimachinery::{Value, meta};
use http::HeaderValue;

/// Names of the level and the schema that every server has, whatever objects there are.
pub const EXEMPT: &str = "exempt";
pub const CATCH_ALL: &str = "catch-all";

/// How a level holds back what is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Not at all.
    Exempt,
    Reject,
    Queue(Queuing),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queuing {
    pub queues: usize,
    /// How many of them one flow may use.
    pub hand: usize,
    /// Requests that may wait in one queue.
    pub length: usize,
}

/// A PriorityLevelConfiguration.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    pub name: String,
    pub uid: HeaderValue,
    pub limit: Limit,
    /// `nominalConcurrencyShares`.
    pub shares: u32,
    /// Per cent of the nominal seats that others may use meanwhile.
    pub lendable: u32,
    /// Per cent of the nominal seats that may be borrowed; none is as many as there are.
    pub borrowing: Option<u32>,
}

/// What tells apart the flows of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distinguisher {
    None,
    ByUser,
    ByNamespace,
}

/// A FlowSchema.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    pub name: String,
    pub uid: HeaderValue,
    /// Lower goes first, and of equals the one whose name does.
    pub precedence: i64,
    pub level: String,
    pub distinguisher: Distinguisher,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub subjects: Vec<Subject>,
    pub resources: Vec<ResourceRule>,
    pub paths: Vec<PathRule>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    User(Words),
    Group(Words),
    /// Namespace, and name or all of it.
    ServiceAccount(String, Words),
}

#[derive(Clone, Debug, PartialEq)]
pub struct ResourceRule {
    pub verbs: Words,
    pub groups: Words,
    /// `pods`, `pods/status`.
    pub resources: Words,
    pub namespaces: Words,
    pub cluster_scope: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PathRule {
    pub verbs: Words,
    pub paths: Words,
}

/// A list of words, or `*`.
#[derive(Clone, Debug, PartialEq)]
pub enum Words {
    All,
    These(Vec<String>),
}

impl Words {
    fn of(list: &Value) -> Self {
        let words: Vec<String> =
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        if words == ["*"] { Words::All } else { Words::These(words) }
    }

    fn one(word: &str) -> Self {
        if word == "*" { Words::All } else { Words::These(vec![word.to_owned()]) }
    }

    pub fn has(&self, word: &str) -> bool {
        match self {
            Words::All => true,
            Words::These(words) => words.iter().any(|known| known == word),
        }
    }
}

fn uid(object: &Value) -> HeaderValue {
    HeaderValue::try_from(meta::uid(object)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn number(value: &Value, default: u32) -> u32 {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or(default)
}

impl Level {
    /// None if the object is not whole: one that a server cannot make sense of counts as absent.
    pub fn of(object: &Value) -> Option<Self> {
        let name = meta::name(object).to_owned();
        let spec = object.get("spec")?;
        let (limit, own) = match meta::str_at(spec, &["type"]) {
            "Exempt" => (Limit::Exempt, spec.get("exempt").unwrap_or(&Value::Null)),
            "Limited" => (response(&spec["limited"]["limitResponse"])?, &spec["limited"]),
            _ => return None,
        };
        // Nothing becomes exempt, or ceases to be, while it is used.
        if (limit == Limit::Exempt) != (name == EXEMPT) {
            return None;
        }
        let shares = if limit == Limit::Exempt { 0 } else { 30 };
        Some(Level {
            uid: uid(object),
            limit,
            shares: number(&own["nominalConcurrencyShares"], shares),
            lendable: number(&own["lendablePercent"], 0).min(100),
            borrowing: own["borrowingLimitPercent"].as_u64().and_then(|percent| u32::try_from(percent).ok()),
            name,
        })
    }
}

fn response(response: &Value) -> Option<Limit> {
    let queuing = &response["queuing"];
    match meta::str_at(response, &["type"]) {
        "Reject" => Some(Limit::Reject),
        "Queue" => {
            let queues = number(&queuing["queues"], 64).max(1) as usize;
            let hand = (number(&queuing["handSize"], 8).max(1) as usize).min(queues);
            Some(Limit::Queue(Queuing {
                queues,
                hand,
                length: number(&queuing["queueLengthLimit"], 50).max(1) as usize,
            }))
        }
        _ => None,
    }
}

impl Schema {
    pub fn of(object: &Value) -> Self {
        let spec = &object["spec"];
        Schema {
            name: meta::name(object).to_owned(),
            uid: uid(object),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            level: meta::str_at(spec, &["priorityLevelConfiguration", "name"]).to_owned(),
            distinguisher: match meta::str_at(spec, &["distinguisherMethod", "type"]) {
                "ByUser" => Distinguisher::ByUser,
                "ByNamespace" => Distinguisher::ByNamespace,
                _ => Distinguisher::None,
            },
            rules: items(&spec["rules"]).map(rule).collect(),
        }
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn rule(rule: &Value) -> Rule {
    let resources = items(&rule["resourceRules"]).map(|rule| ResourceRule {
        verbs: Words::of(&rule["verbs"]),
        groups: Words::of(&rule["apiGroups"]),
        resources: Words::of(&rule["resources"]),
        namespaces: Words::of(&rule["namespaces"]),
        cluster_scope: rule["clusterScope"] == true,
    });
    let paths = items(&rule["nonResourceRules"])
        .map(|rule| PathRule { verbs: Words::of(&rule["verbs"]), paths: Words::of(&rule["nonResourceURLs"]) });
    Rule {
        subjects: items(&rule["subjects"]).filter_map(subject).collect(),
        resources: resources.collect(),
        paths: paths.collect(),
    }
}

fn subject(subject: &Value) -> Option<Subject> {
    let text = |path: &[&str]| meta::str_at(subject, path).to_owned();
    match meta::str_at(subject, &["kind"]) {
        "User" => Some(Subject::User(Words::one(&text(&["user", "name"])))),
        "Group" => Some(Subject::Group(Words::one(&text(&["group", "name"])))),
        "ServiceAccount" => {
            let name = Words::one(&text(&["serviceAccount", "name"]));
            Some(Subject::ServiceAccount(text(&["serviceAccount", "namespace"]), name))
        }
        _ => None,
    }
}
