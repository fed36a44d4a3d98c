/* Figures open at full size, and figures to pick from are drawn when they are opened. */
(() => {
  const plotly = new URL("plotly/plotly.min.js", document.currentScript.src).href;
  let loading;

  function loaded() {
    loading ??= new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = plotly;
      script.onload = done;
      script.onerror = failed;
      document.head.append(script);
    });
    return loading;
  }

  async function draw(fold) {
    if (!fold.open || fold.dataset.drawn) return;
    fold.dataset.drawn = "yes";
    await loaded();
    const { data, layout, config } = JSON.parse(fold.querySelector("script").textContent);
    Plotly.newPlot(fold.querySelector(".pick-plot"), data, layout, config);
  }

  function enlarge(figure) {
    const dialog = document.createElement("dialog");
    dialog.className = "enlarged";
    dialog.setAttribute("aria-label", figure.alt || figure.getAttribute("aria-label") || "figure");
    const close = document.createElement("button");
    close.textContent = "Close";
    const whole = figure.cloneNode(true);
    for (const name of ["role", "tabindex", "title", "width", "height", "style"]) whole.removeAttribute(name);
    dialog.append(close, whole);
    // A tap anywhere closes it, as Escape does; moving the figure about is no tap.
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  function enlargeable(figure) {
    const button = document.createElement("button");
    button.className = "enlarge";
    button.title = "Enlarge";
    button.setAttribute("aria-label", `Enlarge the figure: ${figure.alt || figure.getAttribute("aria-label") || ""}`);
    button.textContent = "⤢";
    const frame = document.createElement("span");
    frame.className = "enlargeable";
    figure.replaceWith(frame);
    frame.append(figure, button);
    for (const one of [figure, button]) one.addEventListener("click", () => enlarge(figure));
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".cell_output img, .bd-content figure img, .front-figure svg").forEach(enlargeable);
    document.querySelectorAll("details.pick").forEach((fold) => fold.addEventListener("toggle", () => draw(fold)));
  });
})();
