//! `/debug/api_priority_and_fairness/…`: what is in force and who waits, as columns for people.

use std::time::{Duration, SystemTime};

use super::Fairness;
use super::queues::Shown;

impl Fairness {
    /// A page by the last part of its path; none if there is no such page. With `details` the requests' users are shown too.
    pub fn dump(&self, page: &str, details: bool) -> Option<String> {
        let rows = match page {
            "dump_priority_levels" => self.levels(),
            "dump_queues" => self.queues(),
            "dump_requests" => self.requests(details),
            _ => return None,
        };
        Some(columns(&rows))
    }

    fn levels(&self) -> Vec<Vec<String>> {
        let mut rows = vec![words(
            "PriorityLevelName ActiveQueues IsIdle IsQuiescing WaitingRequests ExecutingRequests DispatchedRequests \
             RejectedRequests TimedoutRequests CancelledRequests",
        )];
        for level in self.plan().levels.values() {
            let inner = level.inner.lock();
            let totals = inner.queues.totals();
            let active = inner.queues.queues().filter(|queue| queue.waiting > 0).count();
            rows.push(vec![
                level.name.clone(),
                active.to_string(),
                inner.queues.is_idle().to_string(),
                inner.leaving.to_string(),
                totals.waiting.to_string(),
                totals.executing.to_string(),
                totals.dispatched.to_string(),
                totals.refused.to_string(),
                // As upstream, which counts them as cancelled.
                "0".to_owned(),
                totals.cancelled.to_string(),
            ]);
        }
        rows
    }

    fn queues(&self) -> Vec<Vec<String>> {
        let mut rows = vec![words(
            "PriorityLevelName Index PendingRequests ExecutingRequests SeatsInUse NextDispatchR InitialSeatsSum MaxSeatsSum TotalWorkSum",
        )];
        for level in self.plan().levels.values() {
            let inner = level.inner.lock();
            for (index, queue) in inner.queues.queues().enumerate() {
                rows.push(vec![
                    level.name.clone(),
                    index.to_string(),
                    queue.waiting.to_string(),
                    queue.executing.to_string(),
                    queue.seats.to_string(),
                    format!("{:.8}ss", queue.next_r_seconds),
                    queue.waiting_first_seats.to_string(),
                    queue.waiting_seats.to_string(),
                    format!("{:.8}ss", queue.waiting_work_seconds),
                ]);
            }
        }
        rows
    }

    fn requests(&self, details: bool) -> Vec<Vec<String>> {
        let mut head = words(
            "PriorityLevelName FlowSchemaName QueueIndex RequestIndexInQueue FlowDistingsher ArriveTime InitialSeats FinalSeats \
             AdditionalLatency StartTime",
        );
        if details {
            head.push("UserName".to_owned());
        }
        let mut rows = vec![head];
        let began = SystemTime::now().checked_sub(self.began.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
        for level in self.plan().levels.values() {
            let shown = level.inner.lock().queues.requests();
            rows.extend(shown.iter().map(|request| row(&level.name, request, began, details)));
        }
        rows
    }
}

fn row(level: &str, request: &Shown, began: SystemTime, details: bool) -> Vec<String> {
    let index = |place: Option<usize>| place.map_or_else(|| "-1".to_owned(), |place| place.to_string());
    let time = |since: Option<Duration>| match since {
        Some(since) => jiff::Timestamp::try_from(began + since).map_or_else(|_| String::new(), |time| time.to_string()),
        None => "0001-01-01T00:00:00Z".to_owned(),
    };
    let mut row = vec![
        level.to_owned(),
        request.asker.schema.to_string(),
        index(request.queue),
        index(request.place),
        request.asker.flow.to_string(),
        time(Some(request.arrived)),
        request.estimate.seats.to_string(),
        request.estimate.last_seats.to_string(),
        format!("{}s", request.estimate.linger.as_secs_f64()),
        time(request.started),
    ];
    if details {
        row.push(request.asker.user.name.clone());
    }
    row
}

fn words(line: &str) -> Vec<String> {
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Cells with a comma and blanks behind them, so that columns begin below each other; at least eight wide, as upstream's.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.len() + 2).max().unwrap_or(0).max(8)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == row.len() {
                out.push_str(cell);
            } else {
                out.push_str(&format!("{:<width$}", format!("{cell},"), width = widths[column]));
            }
        }
        out.push('\n');
    }
    out
}
