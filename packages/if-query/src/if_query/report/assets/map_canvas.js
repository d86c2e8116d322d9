// The cells of the heat map on a canvas, for the pointer and for the keyboard.

const LABEL_WIDTH = 130;

function mapCanvas(view, tell) {
  const numRows = view.queries.length;
  const numColumns = view.train.length;
  const room = Math.min(1440, document.documentElement.clientWidth - 60);
  const labels = room > 700 ? LABEL_WIDTH : 0;
  const wide = Math.max(5, Math.min(28, Math.floor((room - labels) / numColumns)));
  const tall = Math.max(11, Math.min(26, Math.floor(640 / numRows)));
  const width = labels + wide * numColumns;
  const height = tall * numRows;
  const ratio = window.devicePixelRatio || 1;
  const canvas = element("canvas", {
    width: width * ratio, height: height * ratio, tabindex: "0", role: "application", "aria-describedby": "readout",
    "aria-label": `Heat map of ${numRows} queries by ${numColumns} training examples; arrow keys move, Enter opens the pair`,
  });
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.style.display = "block";
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const share = shares(view.values);
  const cell = { row: 0, column: 0, chosen: false };

  function paint() {
    const text = getComputedStyle(document.body).color;
    context.clearRect(0, 0, width, height);
    context.font = "10px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.lineWidth = 1;
    for (let row = 0; row < numRows; row += 1) {
      if (labels) {
        context.fillStyle = text;
        context.fillText(shortened(context, visibleText(view.queries[row].id), labels - 8), 0, (row + 0.5) * tall);
      }
      for (let column = 0; column < numColumns; column += 1) {
        paintCell(context, share[row][column], labels + column * wide, row * tall, wide, tall, text);
      }
    }
    if (cell.chosen) {
      context.strokeStyle = text;
      context.lineWidth = 2;
      context.strokeRect(labels + cell.column * wide + 1, cell.row * tall + 1, wide - 2, tall - 2);
    }
  }

  function choose(row, column) {
    cell.row = Math.max(0, Math.min(numRows - 1, row));
    cell.column = Math.max(0, Math.min(numColumns - 1, column));
    cell.chosen = true;
    paint();
    tell(view, cell.row, cell.column);
  }

  function open() {
    if (cell.chosen) window.location.hash = pairLink(view.queries[cell.row], view.train[cell.column]);
  }

  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter") open();
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [down, right] = cell.chosen ? steps[event.key] : [0, 0];
    choose(cell.row + down, cell.column + right);
  });
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    return [Math.floor((event.clientY - box.top) / tall), Math.floor((event.clientX - box.left - labels) / wide)];
  };
  canvas.addEventListener("mousemove", (event) => {
    const [row, column] = under(event);
    if (column >= 0 && (row !== cell.row || column !== cell.column || !cell.chosen)) choose(row, column);
  });
  canvas.addEventListener("click", (event) => {
    const [row, column] = under(event);
    if (column < 0) return;
    choose(row, column);
    open();
  });
  paint();
  return canvas;
}

// Harmful cells have a stroke as well, so that the sign does not hang on the colour.
function paintCell(context, share, x, y, wide, tall, text) {
  if (Number.isNaN(share)) return;
  context.fillStyle = shade(share, 1);
  context.fillRect(x, y, wide - (wide > 6 ? 1 : 0), tall - 1);
  if (share < -0.15) {
    context.strokeStyle = text;
    context.globalAlpha = 0.55;
    context.beginPath();
    context.moveTo(x + 1, y + tall - 2);
    context.lineTo(x + wide - 2, y + 1);
    context.stroke();
    context.globalAlpha = 1;
  }
}

function shortened(context, text, room) {
  let kept = text.slice(0, 60);
  if (context.measureText(kept).width <= room && kept === text) return kept;
  while (kept.length > 1 && context.measureText(`${kept}…`).width > room) kept = kept.slice(0, -1);
  return `${kept}…`;
}
