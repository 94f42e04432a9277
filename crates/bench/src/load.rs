//! A closed loop: so many connections, each sending its next request when the last is answered.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client::{Call, Connection, Target};

/// What a load did.
pub struct Done {
    /// From sending to the whole answer, sorted.
    pub latencies: Vec<Duration>,
    pub took: Duration,
    /// Bytes of the answers' bodies.
    pub bytes: usize,
}

pub async fn connections(target: &Target, count: usize) -> Result<Vec<Connection>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(target.connect().await?);
    }
    Ok(all)
}

/// Sends the calls `make(0..total)`, one at a time on each connection. The first refusal ends it.
pub async fn run(connections: Vec<Connection>, total: usize, make: impl Fn(usize) -> Call + 'static) -> Result<Done> {
    let next = Rc::new(Cell::new(0));
    let make = Rc::new(make);
    let started = Instant::now();
    let local = tokio::task::LocalSet::new();
    let workers: Vec<_> = connections
        .into_iter()
        .map(|connection| local.spawn_local(worker(connection, next.clone(), total, make.clone())))
        .collect();
    local
        .run_until(async {
            let mut done = Done { latencies: Vec::with_capacity(total), took: Duration::ZERO, bytes: 0 };
            for worker in workers {
                let (latencies, bytes) = worker.await??;
                done.latencies.extend(latencies);
                done.bytes += bytes;
            }
            done.took = started.elapsed();
            done.latencies.sort_unstable();
            Ok(done)
        })
        .await
}

async fn worker(
    mut connection: Connection,
    next: Rc<Cell<usize>>,
    total: usize,
    make: Rc<impl Fn(usize) -> Call>,
) -> Result<(Vec<Duration>, usize)> {
    let mut latencies = Vec::new();
    let mut bytes = 0;
    loop {
        let index = next.get();
        if index >= total {
            return Ok((latencies, bytes));
        }
        next.set(index + 1);
        let call = make(index);
        let sent = Instant::now();
        bytes += connection.drain(call).await?;
        latencies.push(sent.elapsed());
    }
}
