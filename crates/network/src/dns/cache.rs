//! Answers of other resolvers, kept for as long as they allow, and briefly.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{RData, Record};

/// Upstream's default configuration of CoreDNS caches for at most this long.
const LONGEST: Duration = Duration::from_secs(30);

/// What makes two questions the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    pub query: Query,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

impl Question {
    /// The (only) question of a request, its name in lower case.
    pub fn of(request: &Message) -> Option<Self> {
        let mut query = request.queries.first()?.clone();
        let lower = query.name().to_lowercase();
        query.set_name(lower);
        let dnssec_ok = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        Some(Question { query, dnssec_ok, checking_disabled: request.metadata.checking_disabled })
    }
}

struct Entry {
    answer: Message,
    stored: Instant,
    lifetime: Duration,
}

/// Bounded: the oldest entry makes room.
pub struct Cache {
    entries: HashMap<Question, Entry>,
    order: VecDeque<Question>,
    capacity: usize,
}

impl Cache {
    pub fn new(capacity: usize) -> Self {
        Cache { entries: HashMap::new(), order: VecDeque::new(), capacity }
    }

    /// The answer as it would be now, with what is left of its records' times.
    pub fn get(&self, question: &Question, now: Instant) -> Option<Message> {
        let entry = self.entries.get(question)?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.lifetime {
            return None;
        }
        let mut answer = entry.answer.clone();
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let sections = [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
        sections.into_iter().flatten().for_each(|record| record.ttl = record.ttl.saturating_sub(seconds));
        Some(answer)
    }

    /// Keeps an answer, if it may be kept.
    pub fn put(&mut self, question: Question, answer: Message, now: Instant) {
        let Some(lifetime) = lifetime(&answer) else { return };
        if self.entries.insert(question.clone(), Entry { answer, stored: now, lifetime }).is_none() {
            self.order.push_back(question);
        }
        while self.entries.len() > self.capacity {
            let Some(oldest) = self.order.pop_front() else { break };
            self.entries.remove(&oldest);
        }
    }
}

/// None: not to be kept. Failures pass, and a truncated answer is none.
fn lifetime(answer: &Message) -> Option<Duration> {
    let kept = matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    if !kept || answer.metadata.truncation {
        return None;
    }
    let seconds = if answer.answers.is_empty() {
        // RFC 2308: nothing is remembered for as long as the zone says; without its word, not at all.
        answer.authorities.iter().find_map(negative_seconds)?
    } else {
        answer.answers.iter().map(|record| record.ttl).min()?
    };
    let lifetime = Duration::from_secs(u64::from(seconds)).min(LONGEST);
    (!lifetime.is_zero()).then_some(lifetime)
}

fn negative_seconds(record: &Record) -> Option<u32> {
    match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    }
}
