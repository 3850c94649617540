//! Proxies of what is not in any store: made on first use by a closure, by a type, and in another process.

use std::env;
use std::error::Error;
use std::fs;
use std::process::Command;

use proxystore::codec::Decoded;
use proxystore::factory::{self, Factory, PortableFactory};
use proxystore::{Proxy, Result};
use serde::{Deserialize, Serialize};

/// The words of a text file, read when somebody wants them.
#[derive(Serialize, Deserialize)]
struct Words {
    path: String,
}

impl Factory<Vec<String>> for Words {
    fn resolve(&self) -> Result<Decoded<Vec<String>>> {
        let text =
            fs::read_to_string(&self.path).map_err(|error| proxystore::Error::io("read", self.path.clone(), error))?;
        Ok(Decoded::new(text.split_whitespace().map(str::to_owned).collect()))
    }
}

/// The name by which other programs know it; its state, the path, travels in the proxy.
impl PortableFactory<Vec<String>> for Words {
    const NAME: &'static str = "words-of-a-file";
}

fn main() -> Result<(), Box<dyn Error>> {
    match env::args().nth(1) {
        None => produce(),
        Some(token) => consume(&token),
    }
}

fn produce() -> Result<(), Box<dyn Error>> {
    // A closure, for this process.
    let primes: Proxy<Vec<u32>> =
        Proxy::from_fn(|| Ok((2..100).filter(|n| (2..*n).all(|divisor| n % divisor != 0)).collect()));
    assert!(!Proxy::is_resolved(&primes));
    assert_eq!(primes.len(), 25);

    // A type, whose file need not exist before the first use; a failure is not final.
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("words").display().to_string();
    let words: Proxy<Vec<String>> = Proxy::from_factory(Words { path: path.clone() });
    let too_early = Proxy::try_get(&words).expect_err("the file does not exist");
    fs::write(&path, "made when it is needed")?;
    assert_eq!(words.len(), 5);

    // The same type again, for a process that has registered it.
    let portable: Proxy<Vec<String>> = Proxy::from_portable(&Words { path })?;
    let output = Command::new(env::current_exe()?).arg(portable.to_token()?).output()?;
    let said = String::from_utf8(output.stdout)?;
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim() == "made,when,it,is,needed", "{said}");
    println!("a closure made {} primes; too early, a factory said: {too_early}", primes.len());
    println!("another process made of {} characters: {}", portable.to_token()?.len(), said.trim());
    Ok(())
}

fn consume(token: &str) -> Result<(), Box<dyn Error>> {
    factory::register::<Vec<String>, Words>()?;
    let words: Proxy<Vec<String>> = token.parse()?;
    println!("{}", Proxy::try_get(&words)?.join(","));
    Ok(())
}
