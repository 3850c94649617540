//! Communication behind computation: the next object travels while the current one is worked on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proxystore::connectors::MemoryConnector;
use proxystore::{
    Capabilities, Connector, ConnectorConfig, Format, Key, Pending, Proxy, Region, RegionMut, Result, Store,
};

/// How long an object travels, and about how long it is worked on.
const STEP: Duration = Duration::from_millis(30);
const OBJECTS: usize = 12;

fn main() -> Result<()> {
    // Nothing is cached, so that each way of reading fetches all.
    let store =
        Store::builder_on(Arc::new(Distant(Arc::new(MemoryConnector::new("distant"))))).cache_bytes(0).build()?;
    let inputs: Vec<Vec<f64>> = (0..OBJECTS).map(|i| vec![i as f64; 1000]).collect();
    let proxies = || store.proxy_batch(&inputs).wait();
    let rounds = calibrate(&inputs[0]);
    let expected: f64 = inputs.iter().map(|input| work(input, rounds)).sum();

    let lazily = time(|| {
        // Each first use waits for the network.
        Ok(proxies()?.iter().map(|proxy| work(proxy, rounds)).sum())
    });
    let ahead = time(|| {
        let proxies = proxies()?;
        Proxy::prefetch(&proxies[0]);
        let mut sum = 0.0;
        for (i, proxy) in proxies.iter().enumerate() {
            proxies.get(i + 1).iter().for_each(|next| Proxy::prefetch(next));
            sum += work(proxy, rounds);
        }
        Ok(sum)
    });
    let tasks = time(|| {
        // The same as a task, under any executor: polled once, a fetch goes on by itself.
        futures::executor::block_on(async {
            let proxies = proxies()?;
            let mut sum = 0.0;
            let mut next = Some(Proxy::resolve(&proxies[0]).start());
            for i in 0..proxies.len() {
                let Some(current) = next.take() else { break };
                let current = current.await?;
                next = proxies.get(i + 1).map(|proxy| Proxy::resolve(proxy).start());
                sum += work(&current, rounds);
            }
            Ok(sum)
        })
    });
    for (_, sum) in [&lazily, &ahead, &tasks].into_iter().flatten() {
        assert_eq!(*sum, expected);
    }
    let (lazily, ahead, tasks) = (lazily?.0, ahead?.0, tasks?.0);
    let ratio = lazily.as_secs_f64() / ahead.as_secs_f64();
    println!("{OBJECTS} objects, {STEP:?} away each, about as long in work: resolved on use {lazily:.0?},");
    println!("with prefetch {ahead:.0?} ({ratio:.2} times as fast), as tasks {tasks:.0?}");
    Ok(())
}

fn time(f: impl FnOnce() -> Result<f64>) -> Result<(Duration, f64)> {
    let start = Instant::now();
    let sum = f()?;
    Ok((start.elapsed(), sum))
}

/// Keeps a core busy.
fn work(input: &[f64], rounds: usize) -> f64 {
    (0..rounds).map(|round| input.iter().map(|x| (x + round as f64).sqrt()).sum::<f64>()).sum()
}

/// As many rounds of [`work`] as take about [`STEP`] here.
fn calibrate(input: &[f64]) -> usize {
    let mut rounds = 1;
    loop {
        let start = Instant::now();
        std::hint::black_box(work(input, rounds));
        let took = start.elapsed();
        if took > STEP / 4 {
            return ((rounds as f64 * STEP.as_secs_f64() / took.as_secs_f64()) as usize).max(1);
        }
        rounds *= 2;
    }
}

/// Objects behind a slow network: `get` takes a [`STEP`], without using the processor.
struct Distant(Arc<MemoryConnector>);

impl Connector for Distant {
    fn config(&self) -> &ConnectorConfig {
        self.0.config()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn reserve(&self, len: usize) -> Result<RegionMut> {
        self.0.reserve(len)
    }

    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        self.0.commit(region, format)
    }

    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        let (memory, key) = (Arc::clone(&self.0), *key);
        Pending::blocking(move || {
            std::thread::sleep(STEP);
            memory.get(&key).wait()
        })
    }

    fn exists(&self, key: &Key) -> Pending<bool> {
        self.0.exists(key)
    }

    fn evict(&self, key: &Key) -> Pending<()> {
        self.0.evict(key)
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        self.0.take(key)
    }

    fn close(&self) -> Result<()> {
        self.0.close()
    }
}
