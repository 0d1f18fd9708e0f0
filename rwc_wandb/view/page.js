// Draws the charts of the page, again whenever the reader chooses other layers, groups or colours.

const parsed = id => JSON.parse(document.getElementById(id).textContent);
const ink = matchMedia("(prefers-color-scheme: dark)").matches ? "#d8dce2" : "#23272e";
const {ink: templateInk, heights} = parsed("charts");
const {charts} = JSON.parse(document.getElementById("charts").textContent.replaceAll(templateInk, ink));
const stageColours = charts.find(chart => chart.id.endsWith("_stages")).spec.layer[0].encoding.color.scale.range;
const controls = document.getElementById("controls");
// Global for the browser's console: rwcViews.rwc_curves is the Vega view of the curves.
const views = globalThis.rwcViews = {};
let drawing = 0;

const tables = Object.fromEntries(Object.entries(parsed("tables")).map(([name, {columns, texts}]) => {
  const names = Object.keys(columns);
  return [name, Array.from({length: columns[names[0]].length}, (_, row) => Object.fromEntries(
    names.map(name => [name, texts[name] ? texts[name][columns[name][row]] : columns[name][row]])))];
}));
const isPerLayer = chart => "layer" in tables[chart.table][0];
const layerRows = tables[charts.find(isPerLayer).table];
const isRatio = "ratio" in layerRows[0];
const first = (rows, key) => [...new Map(rows.map(row => [row[key], row])).values()];
const mean = values => values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
// Of the mean of values whose errors are independent.
const errorOfMean = errors => errors.length ? Math.hypot(...errors) / errors.length : null;
const lowest = values => values.length ? Math.min(...values) : null;
const highest = values => values.length ? Math.max(...values) : null;
const different = (rows, key) => [...new Set(rows.map(row => row[key]))];
const layers = first(layerRows, "layer");
const roles = different(layers, "role");

function chosenRows() {
  const {role, stage} = state();
  return layerRows.filter(row => (!role || row.role === role) && (!stage || row.stage === stage));
}

function state() {
  return Object.fromEntries(["role", "stage", "group", "colour"].map(name => [name, controls.elements[name].value]));
}

// A group is drawn as one layer: the mean of its layers at each time.
function grouped(rows, group) {
  if (group !== "role" && group !== "stage") return rows;
  const other = group === "role" ? "stage" : "role";
  const value = isRatio ? "ratio" : "rwc";
  const others = {};
  const cells = new Map();
  for (const row of rows) {
    (others[row[group]] ??= new Set()).add(row[other]);
    const key = JSON.stringify([row[group], row.time]);
    if (!cells.has(key)) cells.set(key, {row, known: [], errors: []});
    if (row[value] !== null) cells.get(key).known.push(row[value]);
    if (row.error != null) cells.get(key).errors.push(row.error);
  }
  const named = values => values.size === 1 ? [...values][0] : `${values.size} ${other}s`;
  return [...cells.values()].map(({row, known, errors}) => ({...row, layer: row[group],
    [other]: named(others[row[group]]), [value]: mean(known), error: isRatio ? highest(errors) : errorOfMean(errors)}));
}

// One row for every stage and time, as the page's own table has them for all layers.
function stageRows(rows) {
  const cells = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.stage, row.time]);
    if (!cells.has(key)) cells.set(key, {stage: row.stage, time: row.time, order: row.depth, known: []});
    const value = isRatio ? row.ratio : row.rwc;
    if (value !== null) cells.get(key).known.push(value);
  }
  return [...cells.values()].map(({known, ...cell}) => {
    const changing = known.filter(value => isRatio || value > 0);
    return {...cell, mean: mean(known), low: lowest(changing), high: highest(changing)};
  });
}

function orderRows(spec, rows, group) {
  const ends = first(rows, "layer").map(row => ({layer: row.layer, depth: row.depth, role: roles.indexOf(row.role)}));
  if (group === "by role") {
    ends.sort((one, other) => one.role - other.role || one.depth - other.depth);
    spec.encoding.y.sort = ends.map(row => row.layer);
    spec.encoding.y.title = "layer, by role";
  } else if (group) {
    spec.encoding.y.title = group;
  }
  spec.height.step = Math.max(heights.lowest, Math.min(heights.highest, Math.floor(heights.typical / ends.length)));
}

function colourLines(spec, rows, field) {
  const [points, line, band] = spec.layer[0].layer.map(layer => layer.encoding).reverse();
  const count = different(rows, field).length;
  const described = {field, type: "nominal", title: field, sort: {field: "depth", op: "min"},
    scale: count <= 10 ? {range: stageColours} : {scheme: count <= 20 ? "tableau20" : "turbo"}};
  line.color = {...described, legend: {orient: "top", columns: 6, symbolType: "stroke", symbolStrokeWidth: 3}};
  points.fill = {...described, legend: null};
  if (band) band.fill = points.fill;
}

// Vega writes into its rows: every chart gets its own.
const copied = rows => rows.map(row => ({...row}));

function prepared(chart) {
  const {id, spec, compiled, table} = chart;
  const {role, stage, group, colour} = state();
  if (!role && !stage && !group && colour === "depth") {
    // As the page opens: compiled already, which the browser would have to wait for.
    const own = structuredClone(compiled);
    own.data.find(({name}) => name === "source_0").values = copied(tables[table]);
    return {mode: "vega", own};
  }
  const own = structuredClone(spec);
  let rows = chosenRows();
  if (!isPerLayer(chart)) rows = role || stage ? stageRows(rows) : tables[table];
  else if (id !== "rwc_map") rows = grouped(rows, group);
  if (["rwc_heatmap", "rwc_profile", "rwc_ratio"].includes(id)) orderRows(own, rows, group);
  if (id === "rwc_curves" && colour !== "depth") colourLines(own, rows, colour);
  if (!isPerLayer(chart) && (role || stage)) {
    own.title.subtitle = `Line: mean over the chosen layers; band: lowest to highest${isRatio ? "" : " of them that changes"}.`;
  }
  const shown = [role && `role ${role}`, stage && `stage ${stage}`].filter(Boolean).join(", ");
  if (shown) own.title.text += ` (${shown})`;
  own.data = {values: copied(rows)};
  return {mode: "vega-lite", own};
}

async function draw() {
  const mine = ++drawing;
  for (const chart of charts) {
    const {id} = chart;
    views[id]?.finalize();
    const {mode, own} = prepared(chart);
    // Errors only (1): Vega warns of a mark that has no rows, and most runs have no zeros to mark.
    const {view} = await vegaEmbed("#" + id, own, {logLevel: 1, mode, renderer: "canvas",
      bind: `#${id}_controls`, actions: {export: true, source: false, compiled: false, editor: false}});
    views[id] = view;
    view.addEventListener("click", (_, item) => {
      const role = item?.datum?.role;
      if (!roles.includes(role)) return;
      controls.elements.role.value = controls.elements.role.value === role ? "" : role;
      draw();
    });
    // The first chart is seen while the others are still being drawn.
    await new Promise(resolve => setTimeout(resolve));
    if (mine !== drawing) return;
  }
  document.body.dataset.drawn = mine;
}

for (const [name, values] of [["role", roles], ["stage", different(layers, "stage")]]) {
  for (const value of values) controls.elements[name].add(new Option(value, value));
}
if (!charts.some(chart => chart.id === "rwc_curves")) controls.elements.colour.parentElement.hidden = true;
controls.addEventListener("change", draw);
await draw();
