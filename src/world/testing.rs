//! Several worlds in one process, a thread each, for tests: to c10d they are processes.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use super::{Place, World};

const SECONDS: Duration = Duration::from_secs(20);

/// A port that nobody listens at.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The place of one of `size` processes on this machine.
pub fn place(rank: usize, size: usize, port: u16) -> Place {
    Place {
        rank,
        size,
        local_rank: rank,
        local_size: size,
        address: "127.0.0.1".to_owned(),
        port,
        launcher_meets: false,
        attempt: "0".to_owned(),
    }
}

/// Runs `work` in a world of `size`; the results by rank.
pub fn together<T: Send>(size: usize, work: impl Fn(World) -> T + Sync) -> Vec<T> {
    let port = free_port();
    let run = |rank| work(World::meet(&place(rank, size, port), SECONDS).unwrap());
    thread::scope(|scope| {
        let run = &run;
        let all: Vec<_> = (0..size).map(|rank| scope.spawn(move || run(rank))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
