//! Lists in chunks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::framework::*;

tests! {
    "[sig-api-machinery] Servers with support for API chunking should return chunks of results for list calls [Conformance]" => chunks;
    "[sig-api-machinery] Servers with support for API chunking should support continue listing from the last key if the original version has been compacted away, though the list is inconsistent [Conformance] [Slow]" => compacted;
}

/// Objects that the tests page through.
const TOTAL: usize = 400;
/// Twice the interval at which upstream forgets old revisions.
const FORGOTTEN: Duration = Duration::from_secs(600);

async fn fill(cx: &Cx) -> Result<Api> {
    let templates = cx.api(&kinds::POD_TEMPLATE);
    cx.step("creating 400 pod templates");
    let create = |number: usize| {
        let templates = templates.clone();
        async move {
            let pod = json!({"spec": {"containers": [{"name": "test", "image": "example.com/none:1"}]}});
            templates.create(&json!({"metadata": {"name": format!("template-{number:04}")}, "template": pod})).await
        }
    };
    let made: Vec<Value> = futures::stream::iter(0..TOTAL).map(create).buffer_unordered(20).try_collect().await?;
    ensure!(made.len() == TOTAL, "made {}", made.len());
    Ok(templates)
}

/// A list being paged through.
struct Pages<'a> {
    api: &'a Api,
    limit: usize,
    /// Objects seen in the pages before.
    found: usize,
    revision: Option<String>,
}

impl Pages<'_> {
    async fn fetch(&self, token: &str) -> Result<Value> {
        let limit = self.limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        if !token.is_empty() {
            query.push(("continue", token));
        }
        self.api.list(&query).await
    }

    /// Another size of page, of a fixed sequence: upstream draws them by lot, of the same range.
    fn next_limit(&mut self) {
        self.limit = self.limit * 17 % (TOTAL / 10 + 1);
    }

    /// Checks a page and returns the token of the next, empty after the last.
    fn check(&mut self, page: &Value) -> Result<String> {
        let objects = items(page, "/items");
        ensure!(objects.len() <= self.limit, "{} objects in a page of {}", objects.len(), self.limit);
        let revision = resource_version(page).to_owned();
        let first = self.revision.get_or_insert(revision.clone());
        ensure!(*first == revision, "a page of revision {revision} in a list of revision {first}");
        let (token, remaining) = (text(page, "/metadata/continue"), at(page, "/metadata/remainingItemCount"));
        let left = TOTAL - (self.found + objects.len()).min(TOTAL);
        if token.is_empty() {
            ensure!(remaining.is_null(), "the last page says that {remaining} remain");
        } else {
            ensure!(*remaining == json!(left), "the page says that {remaining} remain, expected {left}");
        }
        for object in objects {
            expect(object, "/metadata/name", format!("template-{:04}", self.found))?;
            self.found += 1;
        }
        Ok(token.to_owned())
    }

    async fn rest(&mut self, mut token: String) -> Result<()> {
        while !token.is_empty() {
            token = self.check(&self.fetch(&token).await?)?;
        }
        ensure!(self.found == TOTAL, "{} objects in all pages, expected {TOTAL}", self.found);
        Ok(())
    }
}

async fn chunks(cx: Arc<Cx>) -> Result<()> {
    let templates = fill(&cx).await?;
    for round in 1..=3 {
        cx.step(format!("paging, round {round}"));
        let mut pages = Pages { api: &templates, limit: round, found: 0, revision: None };
        let mut token = pages.check(&pages.fetch("").await?)?;
        while !token.is_empty() {
            pages.next_limit();
            token = pages.check(&pages.fetch(&token).await?)?;
        }
        ensure!(pages.found == TOTAL, "{} objects in all pages, expected {TOTAL}", pages.found);
    }
    let all = templates.list(&[("limit", &(TOTAL + 1).to_string())]).await?;
    ensure!(items(&all, "/items").len() == TOTAL, "all at once are {}", items(&all, "/items").len());
    Ok(())
}

async fn compacted(cx: Arc<Cx>) -> Result<()> {
    let templates = fill(&cx).await?;
    let mut pages = Pages { api: &templates, limit: TOTAL / 10, found: 0, revision: None };
    let first = pages.fetch("").await?;
    let token = pages.check(&first)?;
    cx.step("waiting for the token to expire");
    let until = Instant::now() + FORGOTTEN;
    let fresh = loop {
        match pages.fetch(&token).await {
            Ok(_) if Instant::now() > until => bail!("the token has not expired after {} s", FORGOTTEN.as_secs()),
            Ok(_) => tokio::time::sleep(Duration::from_secs(10)).await,
            Err(error) => {
                let status = failure(&error).with_context(|| format!("not an answer of the API: {error:#}"))?;
                ensure!(
                    status.code == 410 && status.reason == "Expired",
                    "failed with {} {}",
                    status.code,
                    status.message
                );
                let metadata = status.metadata.as_ref().context("the answer has no metadata")?;
                break metadata.continue_.clone().context("the answer has no token to continue with")?;
            }
        }
    };
    cx.step("continuing with the token of the failure");
    let old = pages.revision.take();
    let second = pages.fetch(&fresh).await?;
    ensure!(Some(resource_version(&second)) != old.as_deref(), "the revision is still {old:?}");
    ensure!(items(&second, "/items").len() == pages.limit, "the page has {} objects", items(&second, "/items").len());
    let token = pages.check(&second)?;
    pages.rest(token).await
}
