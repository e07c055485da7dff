//! Running a model: stateright for what must always hold, a search of our own for states from which
//! the goal is out of reach for good.

use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

/// A model with a goal.
pub trait Protocol:
    Model<State: Debug + Clone + Hash + PartialEq + Send + Sync, Action: Debug + Clone + PartialEq>
    + Clone
    + Send
    + Sync
    + 'static
{
    /// Everything asked for is done and nothing is left to say.
    fn is_goal(&self, state: &Self::State) -> bool;

    /// Does the world do this to the protocol? The goal must be in reach without more of it.
    fn is_fault(&self, action: &Self::Action) -> bool;
}

/// What a search found wrong: the property, and the steps that lead there.
struct Wrong {
    what: String,
    steps: Vec<String>,
}

/// Beyond this a model is too large for the time the tests may take.
const STATES_MAX: usize = 2_000_000;

/// `SHOAL_MODEL=full`: also what takes minutes.
pub fn is_full_run() -> bool {
    std::env::var_os("SHOAL_MODEL").is_some_and(|v| v == "full")
}

/// All properties hold in every state, and the goal is never out of reach.
pub fn holds(name: &str, model: impl Protocol) {
    let begun = Instant::now();
    let (safe, wrong) = always(model.clone(), Order::Shortest);
    report_and_fail(name, wrong);
    let between = begun.elapsed();
    let (live, wrong) = goal_in_reach(&model);
    report_and_fail(name, wrong);
    println!(
        "{name}: {safe} states safe in {:.1} s, goal in reach from all {live} in {:.1} s",
        between.as_secs_f64(),
        (begun.elapsed() - between).as_secs_f64()
    );
}

/// Every mutant violates a property or puts the goal out of reach.
pub fn catches<P: Protocol, M: Copy + Debug>(name: &str, mutants: &[M], model: impl Fn(M) -> P) {
    let mut missed = Vec::new();
    for mutant in mutants {
        let begun = Instant::now();
        let (states, mut wrong) = always(model(*mutant), Order::Deepest);
        if wrong.is_none() {
            wrong = goal_in_reach(&model(*mutant)).1;
        }
        let seconds = begun.elapsed().as_secs_f64();
        match wrong {
            Some(w) => println!(
                "{name}: mutant {mutant:?} caught: {} after {} steps ({states} states, {seconds:.1} s)",
                w.what,
                w.steps.len()
            ),
            None => {
                println!("{name}: mutant {mutant:?} NOT CAUGHT ({states} states, {seconds:.1} s)");
                missed.push(format!("{mutant:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{name}: mutants not caught: {missed:?}");
}

fn report_and_fail(name: &str, wrong: Option<Wrong>) {
    if let Some(w) = wrong {
        panic!("{name}: {}\n  {}", w.what, w.steps.join("\n  "));
    }
}

/// Where to look first: short ways are good to read, deep ones are quick to find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Shortest,
    Deepest,
}

/// The states visited, and the first property found wrong.
fn always(model: impl Protocol, order: Order) -> (usize, Option<Wrong>) {
    let properties: Vec<_> = model.properties().iter().map(|p| (p.name, p.expectation.clone())).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let builder = model
        .checker()
        .threads(threads)
        .target_state_count(STATES_MAX * 4)
        .finish_when(HasDiscoveries::AnyFailures);
    match order {
        Order::Shortest => judge(&properties, builder.spawn_bfs().join()),
        Order::Deepest => judge(&properties, builder.spawn_dfs().join()),
    }
}

fn judge<P: Protocol>(
    properties: &[(&'static str, Expectation)],
    checker: impl Checker<P>,
) -> (usize, Option<Wrong>) {
    let states = checker.unique_state_count();
    assert!(checker.state_count() < STATES_MAX * 4, "the model is too large");
    let discoveries = checker.discoveries();
    for (name, expectation) in properties {
        let found = discoveries.get(*name);
        match (expectation, found) {
            (Expectation::Always, Some(path)) => {
                let steps = path.clone().into_actions().iter().map(|a| format!("{a:?}")).collect();
                return (states, Some(Wrong { what: (*name).into(), steps }));
            }
            (Expectation::Sometimes, None) if checker.is_done() => {
                return (states, Some(Wrong { what: format!("never: {name}"), steps: vec![] }));
            }
            _ => {}
        }
    }
    (states, None)
}

/// The graph of a model, for walking it backwards.
struct Graph<A> {
    /// How each state was first reached.
    from: Vec<Option<(u32, A)>>,
    goals: Vec<u32>,
    /// Steps of the protocol itself, as (to, from).
    back: Vec<(u32, u32)>,
}

/// The number of states, and a shortest way to one from which no goal can be reached.
fn goal_in_reach(model: &impl Protocol) -> (usize, Option<Wrong>) {
    let mut graph = graph(model);
    graph.back.sort_unstable();
    let mut reaches = vec![false; graph.from.len()];
    let mut todo = graph.goals;
    todo.iter().for_each(|g| reaches[*g as usize] = true);
    while let Some(at) = todo.pop() {
        let first = graph.back.partition_point(|(to, _)| *to < at);
        for (_, before) in graph.back[first..].iter().take_while(|(to, _)| *to == at) {
            if !std::mem::replace(&mut reaches[*before as usize], true) {
                todo.push(*before);
            }
        }
    }
    let wrong = reaches.iter().position(|r| !r).map(|stuck| {
        let mut steps = Vec::new();
        let mut at = stuck;
        while let Some((before, action)) = &graph.from[at] {
            steps.push(format!("{action:?}"));
            at = *before as usize;
        }
        steps.reverse();
        Wrong { what: "the goal is out of reach".into(), steps }
    });
    (graph.from.len(), wrong)
}

fn graph<P: Protocol>(model: &P) -> Graph<P::Action> {
    let mut graph = Graph { from: Vec::new(), goals: Vec::new(), back: Vec::new() };
    let mut known = HashMap::new();
    let mut queue = VecDeque::new();
    for state in model.init_states() {
        known.insert(fingerprint(&state), graph.from.len() as u32);
        queue.push_back((graph.from.len() as u32, state));
        graph.from.push(None);
    }
    let mut actions = Vec::new();
    while let Some((at, state)) = queue.pop_front() {
        if model.is_goal(&state) {
            graph.goals.push(at);
        }
        model.actions(&state, &mut actions);
        for action in actions.drain(..) {
            let Some(next) = model.next_state(&state, action.clone()) else { continue };
            if !model.within_boundary(&next) {
                continue;
            }
            let fault = model.is_fault(&action);
            let new = graph.from.len() as u32;
            let to = *known.entry(fingerprint(&next)).or_insert(new);
            if to == new {
                assert!(graph.from.len() < STATES_MAX, "the model is too large");
                graph.from.push(Some((at, action)));
                queue.push_back((new, next));
            }
            if !fault && to != at {
                graph.back.push((to, at));
            }
        }
    }
    graph
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}
