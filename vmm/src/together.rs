//! The same for many, at once.

use std::io;
use std::thread::Builder;

/// Does `work` for each of `items` in a thread of its own, and returns what came of each in their order. Where there
/// could be no thread, nothing was done.
pub fn together<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<io::Result<R>> {
    let work = &work;
    std::thread::scope(|scope| {
        let begin = |item| Builder::new().spawn_scoped(scope, move || work(item));
        let begun: Vec<_> = items.into_iter().map(begin).collect();
        let finish = |thread: std::thread::ScopedJoinHandle<'_, R>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        begun.into_iter().map(|thread| thread.map(finish)).collect()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_came_of_each_is_in_the_order_of_the_items() {
        let done = super::together((0..50).collect(), |number: u32| number * 2);
        let done: Vec<u32> = done.into_iter().map(Result::unwrap).collect();
        assert_eq!(done, (0..50).map(|number| number * 2).collect::<Vec<_>>());
    }
}
