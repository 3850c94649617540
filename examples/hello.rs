//! Put an object into a store, send a reference to it, use the reference.
use proxystore::{Proxy, Store};

fn main() -> Result<(), proxystore::Error> {
    let store = Store::open("shm://hello")?;
    let proxy: Proxy<Vec<f64>> = store.proxy(&vec![1.0, 2.0, 3.0]).wait()?;
    let token = proxy.to_token()?; // this travels: an argument, a message, a line of a file

    let proxy: Proxy<Vec<f64>> = token.parse()?;
    assert!(!Proxy::is_resolved(&proxy), "nothing was fetched so far");
    let mean = proxy.iter().sum::<f64>() / proxy.len() as f64; // the first use fetches it
    assert_eq!(mean, 2.0);
    println!("the mean is {mean}, by way of {} characters: {token}", token.len());
    Ok(())
}
