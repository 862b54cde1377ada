"""What tests ask the page in the browser, as functions of JavaScript."""

UNNAMED = """() => [...document.querySelectorAll("a, button, input, select, summary, [role=img], [tabindex='0']")]
    .filter((element) => element.offsetParent && !element.matches("details:not([open]) :not(summary)"))
    .filter((element) => !(element.getAttribute("aria-label") || element.textContent.trim()
        || [...element.labels ?? []].some((label) => label.textContent.trim())))
    .map((element) => element.outerHTML.slice(0, 200))"""
"""What can be used and has no name."""
CONTRASTS = """() => {
    const parts = (colour) => colour.match(/[0-9.]+/g).map(Number);
    const light = (colour) => parts(colour).slice(0, 3).map((value) => value / 255)
        .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
    const ground = light(getComputedStyle(document.body).backgroundColor);
    return ["body", ".quiet", "main a", ".badge", ".bad, .good", ".axis"].map((name) => {
        const found = document.querySelector(name) ?? document.body.appendChild(Object.assign(
            document.createElement("i"), {className: name.slice(1).split(",")[0]}));
        const [low, high] = [ground, light(getComputedStyle(found).color)].sort((one, other) => one - other);
        return [name, (high + 0.05) / (low + 0.05)];
    });
}"""
"""Contrast of each kind of text with the ground: [name, ratio]."""
MATHS = """async () => {
    const [{wordDiff}, {smoothed, thinned}, {barsOf}, {Report}] = await Promise.all(
        ["diff", "series", "groups", "report"].map((name) => import(`/${name}.js`)));
    let seed = 1;
    const chance = (most) => (seed = (seed * 48271) % 2147483647) % most;
    const text = () => Array.from({length: chance(30)}, () => "abcd"[chance(4)] + " \\n"[chance(2)]).join("");
    for (let round = 0; round < 300; round += 1) {
        const [older, newer] = [text(), text()];
        const pieces = wordDiff(older, newer);
        const of = (...kinds) => pieces.filter(({kind}) => kinds.includes(kind)).map(({text}) => text).join("");
        if (of("same", "gone") !== older || of("same", "new") !== newer) return [older, newer, pieces];
    }
    const long = wordDiff("a ".repeat(5000), "b ".repeat(5000)).map(({kind}) => kind);
    const rewards = [null, ...Array.from({length: 100}, (_, place) => place / 99)];
    const bars = barsOf(rewards);
    const rounded = (values) => values.map((value) => Math.round(1000 * value));
    const answers = {
        "/api/metrics?id=a%2Fb": {step: [4, 6], values: {a: [0, 4], b: [0, 0]}},
        "/api/metrics?id=a%2Fb&mean=1": {step: [5], values: {a: [2], b: [0]}, counts: {a: [9], b: [9]}},
    };
    return {
        long,
        kept: wordDiff("one two three", "one 2 three").map(({kind, text}) => `${kind} ${text}`),
        smooth: rounded(smoothed({values: [2, 2, 2, 5]}, 0.5)),
        even: rounded(smoothed({values: [2, 5], counts: [3, 1]}, 0.5)),
        means: new Report({answers}).metrics({id: "a/b", names: "a", mean: 1}),
        thin: thinned({steps: [1, 2, 3, 4, 5], values: [5, 6, 7, 8, 9]}, 3),
        bars: [bars.length, bars.reduce((sum, {count}) => sum + count, 0)],
        each: rewards.every((reward) => bars.filter(({holds}) => holds(reward)).length === 1),
    };
}"""
"""Whether what its modules compute is right; a difference that does not add up is given instead."""
