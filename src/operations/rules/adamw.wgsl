// The rule of adamw.rs: the weight decay, then the rule of adam.wgsl, whose coefficients come first.

const DECAY: u32 = 4u;

fn adamw(g: f32, state: State) -> State {
    let decayed = flush(state.variable - flush(state.variable * coefficient(DECAY)));
    return adam(g, State(decayed, state.slot0, state.slot1));
}
